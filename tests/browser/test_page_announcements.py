"""What the page announces to screen readers."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.support.browsing import OpenPage, PlayedGateway, ask, conversations, ended

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LIVE = "[aria-live]:not([aria-live=off]), [role=status], [role=alert], [role=log]:not([aria-live=off])"


async def test_finished_sentences_of_an_answer_are_announced_once_and_in_plain_words(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin("Take **hot** water. Then"))
    page = await open_page(gateway)
    region = page.get_by_test_id("announcer")
    answer = await ask(page, "How is tea made?")
    await expect(region.locator("p")).to_have_text(["Take hot water."])
    assert await region.evaluate("region => region.closest('[aria-busy=true]')") is None
    gateway.delta(" wait for it.\n\n- Pour")
    await expect(region.locator("p")).to_have_text(["Take hot water.", "Then wait for it."])
    gateway.delta(" it")
    details = {"reason": "max_output_tokens"}
    response = {"id": "resp_1", "object": "response", "status": "incomplete", "incomplete_details": details}
    gateway.say("response.incomplete", response=response)
    await ended(answer)
    await expect(region.locator("p")).to_contain_text(["Take hot", "Then wait for it.", "Pour it", "Length limit"])


async def test_opening_a_conversation_announces_nothing_of_it(open_page: OpenPage) -> None:
    page = await open_page(PlayedGateway(lambda gateway, _: gateway.complete("One. Two. Three.")))
    await ended(await ask(page, "Count."))
    await page.get_by_test_id("new").click()
    await page.evaluate(
        f"window.said = []; for (const region of document.querySelectorAll('{LIVE}'))"
        " new MutationObserver((all) => all.forEach(({ addedNodes }) => addedNodes.forEach("
        "(node) => window.said.push(node.textContent)))).observe(region, { childList: true, subtree: true })"
    )
    await conversations(page).get_by_test_id("open").click()
    await expect(page.get_by_test_id("message")).to_have_count(2)
    await page.wait_for_timeout(1_500)
    assert await page.evaluate("window.said.filter((words) => /One|Two|Three|Count/.test(words))") == []
