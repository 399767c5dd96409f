"""Several windows of one browser."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.support.browsing import (
    SOCKET,
    OpenPage,
    Play,
    PlayedGateway,
    ask,
    conversations,
    ended,
    messages,
    saying,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


async def open_second(page: Page, play: Play) -> Page:
    """Open a second window, and the first conversation in it."""
    other = await page.context.new_page()
    await other.route_web_socket(SOCKET, play)
    await other.goto(page.url)
    await conversations(other).first.get_by_test_id("open").click()
    return other


async def test_an_answer_that_another_window_receives_is_shown_as_running_there(open_page: OpenPage) -> None:
    gateway, second = PlayedGateway(lambda gateway, _: gateway.begin("Once upon")), saying("Second.")
    page = await open_page(gateway)
    await expect(await ask(page, "A story.")).to_contain_text("Once upon")
    other = await open_second(page, second)
    answer = messages(other, "assistant")
    await expect(answer).to_have_attribute("data-state", "streaming")
    await expect(answer).to_contain_text("another window")
    await other.get_by_test_id("composer").fill("And then?")
    await other.get_by_test_id("composer").press("Enter")
    await expect(other.get_by_test_id("queued-message")).to_have_count(1)
    gateway.delta(" a time.")
    await expect(answer).to_contain_text("Once upon a time.")
    await other.wait_for_timeout(4_000)  # the first window is asked whether it is still there
    await expect(answer).to_have_attribute("data-state", "streaming")
    gateway.say_of(1, "response.completed", "completed")
    await expect(messages(other, "assistant").locator(".message-text")).to_have_text(["Once upon a time.", "Second."])
    await expect(other.get_by_test_id("log")).not_to_contain_text("Interrupted")
    assert second.asked[0]["previous_response_id"] == "resp_1"
    await expect(messages(page, "user")).to_have_count(2)


async def test_an_answer_of_a_window_that_was_closed_is_shown_as_interrupted(open_page: OpenPage) -> None:
    page = await open_page(PlayedGateway(lambda gateway, _: gateway.begin("Once upon")))
    await expect(await ask(page, "A story.")).to_contain_text("Once upon")
    other = await open_second(page, saying("Fine."))
    await expect(messages(other, "assistant")).to_have_attribute("data-state", "streaming")
    await page.close()
    await expect(messages(other, "assistant")).to_contain_text("Interrupted", timeout=15_000)


async def test_a_rename_in_one_window_is_not_undone_by_another(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    await ended(await ask(page, "Tea?"))
    other = await open_second(page, saying("Good."))
    await conversations(page).get_by_test_id("rename").click()
    await page.keyboard.type("About tea")
    await page.keyboard.press("Enter")
    await expect(conversations(other)).to_have_text([re.compile("About tea")])
    await ended(await ask(other, "More?"))
    await expect(conversations(other)).to_have_text([re.compile("About tea")])
    await other.reload()
    await expect(conversations(other)).to_have_text([re.compile("About tea")])


async def test_a_conversation_deleted_in_one_window_is_gone_from_all(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin("Once"))
    page = await open_page(saying("Fine."))
    await ended(await ask(page, "Tea?"))
    other = await open_second(page, gateway)
    await expect(await ask(other, "More?")).to_contain_text("Once")
    await other.get_by_test_id("composer").fill("A thought")
    await conversations(page).get_by_test_id("remove").click()
    await expect(messages(other, "user")).to_have_count(0)
    await expect(other.get_by_test_id("composer")).to_have_value("A thought")
    gateway.say_of(1, "response.completed", "completed")
    await other.reload()
    await expect(other.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await expect(conversations(other)).to_have_count(0)
    await page.get_by_test_id("undo").click()
    await expect(conversations(other)).to_have_text([re.compile(r"Tea\?")])
