"""Prefill in advance: what the page requests before a question is sent, and that questions never wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.support.browsing import (
    OpenPage,
    PlayedGateway,
    ask,
    conversations,
    count_of,
    ended,
    expect_soon,
    saying,
    short_answers,
)
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PASTE = "A samovar is a metal container to heat water in, and it stands on the table while tea is poured. " * 8
FIELDS = {"generate": False, "store": False, "truncation": "auto", "stream_id": "ahead"}


async def test_a_pasted_message_is_prefilled_while_the_user_types(open_page: OpenPage, server: Gateway) -> None:
    page = await open_page(short_answers)
    await ended(await ask(page, "Hello."))
    requests = server.metric("samovar_requests_total")
    await page.get_by_test_id("composer").fill(PASTE)
    await expect_soon(page, lambda: server.metric("samovar_requests_total") > requests)  # the prefill has ended
    await page.get_by_test_id("composer").press("End")
    await page.get_by_test_id("composer").press_sequentially(" Is that true?")
    answer = await ask(page, await page.get_by_test_id("composer").input_value())
    await ended(answer)
    new = await count_of(answer, "prompt") - await count_of(answer, "cached")
    assert new < 40, "the paste was encoded after it was sent"


async def test_the_history_is_prefilled_when_a_conversation_is_opened_or_the_connection_is_restored(
    open_page: OpenPage,
) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    await ended(await ask(page, "Hi"))
    assert gateway.ahead == []
    await page.get_by_test_id("new").click()
    await conversations(page).get_by_test_id("open").click()
    expected = {"type": "response.create", "previous_response_id": "resp_1", **FIELDS}
    await expect_soon(page, lambda: gateway.ahead == [expected])
    await gateway.sockets[0].close(code=1012, reason="service restart")
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "lost")
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open", timeout=10_000)
    await expect_soon(page, lambda: gateway.ahead == [expected] * 2)


async def test_short_messages_and_small_additions_are_not_prefilled(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    await page.get_by_test_id("composer").fill("Hello.")
    await page.wait_for_timeout(900)
    assert gateway.ahead == []
    await page.get_by_test_id("composer").fill(PASTE)
    await page.wait_for_timeout(900)
    await page.get_by_test_id("composer").fill(PASTE + "And now?")
    await page.wait_for_timeout(900)
    assert [request["input"] for request in gateway.ahead] == [[{"role": "user", "content": PASTE}]]


async def test_a_question_cancels_a_running_prefill(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, object]) -> None:
        if request["type"] == "response.create":
            gateway.complete("Fine.")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    await page.get_by_test_id("composer").fill(PASTE)
    await page.wait_for_timeout(900)
    response = {"id": "resp_ahead", "object": "response", "status": "in_progress"}
    gateway.say("response.created", response=response, stream_id="ahead")
    await ended(await ask(page, PASTE))
    assert [request["type"] for request in gateway.asked] == ["response.cancel", "response.create"]
    assert gateway.asked[0]["response_id"] == "resp_ahead"


async def test_a_setting_disables_prefill_in_advance(open_page: OpenPage, tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path / "state", model=tiny_model, context=512, encode_ahead=False) as gateway:
        assert gateway.get("/page.json").json()["encode_ahead"] is False
        played = saying("Fine.")
        page = await open_page(played, url=gateway.url)
        await page.get_by_test_id("composer").fill(PASTE)
        await page.wait_for_timeout(900)
        assert played.ahead == []
