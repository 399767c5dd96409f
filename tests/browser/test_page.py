"""The chat page in a real browser, with the real gateway and, for its failures, a scripted one."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import WebSocketRoute, expect

import gateway.errors
from tests.support.browsing import (
    LONG,
    OpenPage,
    PlayedGateway,
    ask,
    count_of,
    ended,
    expect_soon,
    first_words_shown,
    messages,
    saying,
    short_answers,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

CODES = {  # of docs/api.md; some are said by parts of the gateway that have no class for them
    *("invalid_json", "invalid_request", "model_not_found", "previous_response_not_found", "context_length_exceeded"),
    *("message_too_large", "rate_limit_exceeded", "queue_full", "queue_timeout", "unsupported_parameter"),
    *("websocket_connection_limit_reached", "engine_unavailable", "store_unavailable", "invalid_api_key"),
}
PHONE = {"width": 390, "height": 844}


async def test_two_turns_stream_and_the_second_uses_the_cache(open_page: OpenPage) -> None:
    page = await open_page(short_answers)
    await page.get_by_test_id("log").evaluate(
        "log => { window.growths = 0; new MutationObserver((all) => { window.growths += all.length })"
        ".observe(log, { subtree: true, childList: true }) }"
    )
    first = await ask(page, "Name three warm drinks.")
    await ended(first)
    assert await page.evaluate("window.growths") > 20, "the answer came in one piece"
    second = await ask(page, "Which of them is made in a samovar?")
    await ended(second)
    await expect(messages(page, "user")).to_have_text(
        [re.compile("Name three warm drinks"), re.compile("Which of them is made in a samovar")]
    )
    turn = await count_of(first, "prompt") + await count_of(first, "output")
    assert 0 < await count_of(second, "cached") <= turn < await count_of(second, "prompt")
    await expect(second.get_by_test_id("stats")).to_be_hidden()
    await second.get_by_test_id("details").click()
    await expect(second.get_by_test_id("stats")).to_contain_text("prompt tokens from cache")


@pytest.mark.parametrize("by_key", [False, True], ids=["by the button", "by Escape"])
async def test_stop_ends_an_answer_as_cancelled_and_the_next_turn_works(open_page: OpenPage, by_key: bool) -> None:
    page = await open_page(short_answers)
    story = await ask(page, LONG)
    await first_words_shown(page)
    if by_key:
        await page.keyboard.press("Escape")
    else:
        await page.get_by_test_id("stop").click()
    await ended(story, "cancelled")
    await expect(page.get_by_test_id("stop")).to_be_hidden()
    await expect(page.get_by_test_id("composer")).to_be_focused()
    await ended(await ask(page, "Thank you. Say goodbye."))


async def test_a_new_conversation_starts_empty_even_during_an_answer(open_page: OpenPage) -> None:
    page = await open_page(short_answers)
    await ask(page, LONG)
    await first_words_shown(page)
    await page.get_by_test_id("new").click()
    await expect(page.get_by_test_id("message")).to_have_count(0)
    answer = await ask(page, "Hi")
    await ended(answer)
    await expect(page.get_by_test_id("message")).to_have_count(2)
    assert await count_of(answer, "prompt") < 80, "the prompt carries the conversation that was left"


async def test_a_lost_connection_is_reopened_and_the_conversation_continues(open_page: OpenPage) -> None:
    sockets: list[WebSocketRoute] = []

    def through(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        short_answers(socket)

    page = await open_page(through)
    await ended(await ask(page, "Name a warm drink."))
    await sockets[0].close(code=1012, reason="service restart")
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "lost")
    second = await ask(page, "And a cold one?")  # sent after reconnecting
    await ended(second)
    assert len(sockets) == 2
    assert await count_of(second, "cached") > 0


async def test_an_answer_resumes_where_the_connection_was_lost(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.create":
            gateway.begin("Once upon")
            gateway.keep_alive()
        else:
            gateway.delta(" a time.")
            gateway.say_of(1, "response.completed", "completed")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "A story, please.")
    await expect(answer).to_contain_text("Once upon")
    await gateway.sockets[0].close(code=1006 + 5, reason="the network went away")
    await ended(answer)
    await expect(answer.locator(".message-text")).to_have_text("Once upon a time.")
    assert gateway.asked[1] == {"type": "response.resume", "response_id": "resp_1", "starting_after": 2}


async def test_an_answer_that_cannot_be_resumed_is_requested_again(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.resume":
            gateway.refuse("invalid_request", "resp_1 is unknown", response_id="resp_1")
        elif len(gateway.asked) == 1:
            gateway.begin("Once upon")
        else:
            gateway.complete("There was a samovar.")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "A story, please.")
    await expect(answer).to_contain_text("Once upon")
    await gateway.sockets[0].close(code=1012, reason="service restart")
    await ended(answer)
    await expect(answer.locator(".message-text")).to_have_text("There was a samovar.")
    assert [request.get("input") for request in gateway.asked] == ["A story, please.", None, "A story, please."]


async def test_a_planned_restart_fails_no_answer(open_page: OpenPage) -> None:
    """A stopping gateway refuses requests, cuts long answers off, and closes its connections."""

    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        if len(gateway.sockets) > 1:
            gateway.complete("There was a samovar.")
        elif len(gateway.asked) == 1:
            gateway.begin("Once upon")
        else:
            gateway.refuse("engine_unavailable", "the gateway is stopping; connect again in a moment")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "A story, please.")
    await expect(answer).to_contain_text("Once upon")
    details = {"reason": "cancelled", "message": "the gateway is stopping"}
    response = {"id": "resp_1", "object": "response", "status": "cancelled", "incomplete_details": details}
    gateway.say("response.incomplete", response=response)
    await expect(answer.get_by_test_id("wait")).to_contain_text("Trying again")
    await gateway.sockets[0].close(code=1012, reason="the gateway restarts; connect again")
    await ended(answer)
    await expect(answer.locator(".message-text")).to_have_text("There was a samovar.")


@pytest.mark.parametrize("answers", [True, False], ids=["which answers", "which is silent"])
async def test_a_silent_link_is_checked_and_given_up_if_it_is_dead(open_page: OpenPage, answers: bool) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    gateway.answers_pings = answers
    await expect_soon(page, lambda: gateway.pings > 1 or len(gateway.sockets) > 1)
    assert len(gateway.sockets) == (1 if answers else 2)
    gateway.answers_pings = True
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open", timeout=15_000)
    await ended(await ask(page, "Hi"))


async def test_a_gateway_that_refuses_pings_is_not_asked_again(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    gateway.answers_pings = False
    await expect_soon(page, lambda: gateway.pings > 0)
    gateway.sockets[0].send('{"type": "error", "status": 400, "error": {"code": "invalid_request"}}')
    await page.wait_for_timeout(6_000)
    assert (gateway.pings, len(gateway.sockets)) == (1, 1)
    await ended(await ask(page, "Hi"))


async def test_a_long_pause_before_reconnecting_is_counted_down_and_can_be_ended(open_page: OpenPage) -> None:
    up = True
    sockets: list[WebSocketRoute] = []

    def play(connection: WebSocketRoute) -> None:
        sockets.append(connection)
        if not up:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(connection.close(code=1012)))

    page = await open_page(play)
    up = False
    await sockets[0].close(code=1012)
    await expect(page.get_by_test_id("retry")).to_have_text(re.compile(r"\d s\s*Now"), timeout=15_000)
    up = True
    count = len(sockets)
    await page.get_by_test_id("retry-now").click()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    assert len(sockets) == count + 1
    await expect(page.get_by_test_id("retry")).to_be_hidden()


async def test_an_answer_fails_after_several_lost_connections_and_can_be_retried(
    open_page: OpenPage,
) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        if len(gateway.asked) <= 4:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(gateway.sockets[-1].close(code=1012)))
        else:
            gateway.complete("At last.")

    page = await open_page(PlayedGateway(play))
    answer = await ask(page, "A story, please.")
    await expect(answer).to_have_attribute("data-state", "failed", timeout=30_000)
    await expect(answer.get_by_test_id("error")).to_have_attribute("data-code", "connection_lost")
    await answer.get_by_test_id("again").click()
    await expect(messages(page, "assistant")).to_have_count(1)
    await expect(messages(page, "assistant")).to_contain_text("At last.", timeout=30_000)


async def test_stop_before_the_response_id_is_known_cancels_the_answer_once_it_is(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.cancel":
            gateway.say_of(1, "response.incomplete", "cancelled")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "Hi")
    await page.get_by_test_id("stop").click()
    await expect(answer.get_by_test_id("wait")).to_have_text("Stopping…")
    assert len(gateway.asked) == 1
    gateway.say_of(1, "response.created", "in_progress")
    gateway.say_of(1, "response.in_progress", "in_progress")
    await ended(answer, "cancelled")
    assert gateway.asked[1:] == [{"type": "response.cancel", "response_id": "resp_1"}]


@pytest.mark.parametrize(
    ("locale", "send", "greeting"),
    [("en-US", "Send", "talk about"), ("zh-CN", "发送", "聊点什么"), ("zh-TW", "傳送", "聊點什麼")],
)
async def test_the_page_uses_the_browsers_language(open_page: OpenPage, locale: str, send: str, greeting: str) -> None:
    page = await open_page(locale=locale)
    await expect(page.locator("html")).to_have_attribute("lang", re.compile(locale[:2]))
    await expect(page.get_by_test_id("send")).to_have_attribute("aria-label", send)
    await expect(page.locator("#hello h2")).to_contain_text(greeting)


async def test_every_text_exists_in_all_languages_and_every_error_has_one(open_page: OpenPage) -> None:
    page = await open_page()
    keys = await page.evaluate(
        "async () => { const { catalogueFor } = await import('/static/i18n.js');"
        " const catalogues = await Promise.all(['en', 'zh', 'zh-Hant'].map(catalogueFor));"
        " return Object.values(catalogues).map((all) => [Object.keys(all), Object.keys(all.errors)]) }"
    )
    assert keys == [keys[0]] * 3
    errors = {kind.code for kind in vars(gateway.errors).values() if hasattr(kind, "code")}
    assert errors | CODES <= set(keys[0][1])


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
async def test_nothing_is_cut_off_on_a_phone(open_page: OpenPage, locale: str) -> None:
    words = "a-word-without-an-end-" * 20
    table = "\n\n| " + " | ".join("column" for _ in range(12)) + " |\n|" + "---|" * 12

    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        gateway.begin(f"{words}\n\n```\n{words}\n```{table}")
        gateway.say_of(1, "response.failed", "failed")

    page = await open_page(PlayedGateway(play), locale, viewport=PHONE, is_mobile=True, has_touch=True)
    answer = await ask(page, "x" * 200)
    await ended(answer, "failed")
    for box in ("document.documentElement", "document.getElementById('scroll')"):
        assert await page.evaluate(f"{box}.scrollWidth") == PHONE["width"]
    assert await page.evaluate("document.documentElement.scrollHeight") == PHONE["height"]
