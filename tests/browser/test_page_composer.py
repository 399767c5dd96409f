"""Writing a message: keys, input methods, drafts, messages written during an answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import expect

from tests.support.browsing import OpenPage, PlayedGateway, ask, conversations, ended, messages, saying

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ENTER_OF_INPUT_METHOD = """composer => {
    composer.dispatchEvent(new CompositionEvent("compositionend", { bubbles: true }));
    composer.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true }));
}"""


async def test_composing_with_an_input_method_does_not_send(open_page: OpenPage) -> None:
    page = await open_page()
    composer = page.get_by_test_id("composer")
    await composer.focus()
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    await page.keyboard.press("Enter")
    await composer.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    # Safari reports the Enter that ends a composition after its end, marked only by the key code.
    await composer.evaluate(ENTER_OF_INPUT_METHOD)
    await expect(page.get_by_test_id("message")).to_have_count(0)


async def test_enter_sends_while_an_input_method_is_active_but_composes_nothing(open_page: OpenPage) -> None:
    """Chrome on macOS gives the key code 229 to every key while Pinyin is active."""
    page = await open_page(saying("Fine."))
    composer = page.get_by_test_id("composer")
    await composer.fill("你好")
    await composer.dispatch_event("compositionend")
    await page.wait_for_timeout(200)
    await composer.dispatch_event("keydown", {"key": "Enter", "keyCode": 229})
    await page.keyboard.insert_text("\n")  # by the input method
    await expect(messages(page, "user").locator(".message-text")).to_have_text(["你好"])
    await expect(composer).to_have_value("")


async def test_shift_and_enter_start_a_new_line(open_page: OpenPage) -> None:
    page = await open_page()
    composer = page.get_by_test_id("composer")
    await composer.press_sequentially("one")
    await composer.press("Shift+Enter")
    await composer.press_sequentially("two")
    await expect(composer).to_have_value("one\ntwo")
    await expect(page.get_by_test_id("message")).to_have_count(0)


async def test_a_draft_belongs_to_its_conversation_and_survives_a_reload(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    composer = page.get_by_test_id("composer")
    await ended(await ask(page, "Tea?"))
    await composer.fill("More of tea")
    await page.get_by_test_id("new").click()
    await expect(composer).to_have_value("")
    await composer.fill("Something else")
    await page.reload()
    await expect(composer).to_have_value("Something else")
    await conversations(page).get_by_test_id("open").click()
    await expect(composer).to_have_value("More of tea")
    await ended(await ask(page, "More of tea"))
    await page.reload()
    await expect(composer).to_have_value("")


async def test_a_message_written_during_an_answer_is_shown_and_sent_after_it(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin(f"Answer {len(gateway.asked)}"))
    page = await open_page(gateway)
    await ask(page, "One?")
    for words in ("Two?", "Three?"):
        await page.get_by_test_id("composer").fill(words)
        await page.get_by_test_id("composer").press("Enter")
    await expect(page.get_by_test_id("queued-message")).to_have_text([re.compile(r"Two\?"), re.compile(r"Three\?")])
    await page.get_by_test_id("take-back").last.click()
    await expect(page.get_by_test_id("composer")).to_have_value("Three?")
    gateway.say_of(1, "response.completed", "completed")
    await expect(messages(page, "user").locator(".message-text")).to_have_text(["One?", "Two?"])
    await expect(page.get_by_test_id("queued-message")).to_have_count(0)
    assert gateway.asked[1]["previous_response_id"] == "resp_1"


async def test_a_queued_message_becomes_a_draft_if_the_answer_before_it_is_stopped(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.create":
            gateway.begin("Once")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "One?")
    await expect(answer).to_contain_text("Once")
    await page.get_by_test_id("composer").fill("Two?")
    await page.get_by_test_id("composer").press("Enter")
    await page.get_by_test_id("stop").click()
    gateway.say_of(1, "response.incomplete", "cancelled")
    await ended(answer, "cancelled")
    await expect(page.get_by_test_id("composer")).to_have_value("Two?")
    await page.reload()
    await expect(page.get_by_test_id("composer")).to_have_value("Two?")


async def test_a_long_paste_becomes_a_chip_and_is_sent_before_the_question(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    paste = " ".join(f"word{number}" for number in range(5_000))
    await page.evaluate("(words) => navigator.clipboard.writeText(words)", paste)
    composer = page.get_by_test_id("composer")
    await composer.press("Control+V")
    await expect(page.get_by_test_id("chip")).to_contain_text(re.compile(r"[\d,]{5,} tokens"))
    await expect(composer).to_have_value("")
    await composer.press_sequentially("What is this?")
    await page.reload()
    await expect(page.get_by_test_id("chip")).to_have_count(1)
    await page.get_by_test_id("chip-open").click()
    await expect(composer).to_have_value(f"{paste}\n\nWhat is this?")
    await composer.fill("")
    await composer.press("Control+V")
    await composer.press_sequentially("What is this?")
    await composer.press("Enter")
    await expect(page.get_by_test_id("chip")).to_have_count(0)
    await ended(messages(page, "assistant"))
    assert gateway.asked[0]["input"] == f"{paste}\n\nWhat is this?"
    question = messages(page, "user")
    await expect(question).to_have_attribute("data-folded", "true")
    await question.get_by_test_id("unfold").click()
    await expect(question).to_have_attribute("data-folded", "false")
