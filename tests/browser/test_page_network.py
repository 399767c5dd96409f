"""Conversations that lose the network and the gateway during an answer, and continue."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, expect

from gateway.cli.launcher import free_port
from tests.support.browsing import LONG, Wire, ask, conversations, ended, expect_soon, first_words_shown, messages
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

STORED = "JSON.parse(localStorage[Object.keys(localStorage).find((key) => key.startsWith('samovar.conversation.'))])"


def listen(page: Page) -> list[dict[str, Any]]:
    """Collect the messages that the page sends, without prefill in advance."""
    sent: list[dict[str, Any]] = []

    def note(payload: str | bytes) -> None:
        request = json.loads(payload)
        if request.get("generate") is not False and request["type"] != "samovar.ping":
            sent.append(request)

    page.on("websocket", lambda socket: socket.on("framesent", note))
    return sent


def kinds(sent: list[dict[str, Any]]) -> list[str]:
    """Summarize sent messages."""
    return [request["type"].removeprefix("response.") for request in sent]


async def words_of(page: Page) -> str:
    """Return the newest answer as stored in the browser, in Markdown."""
    turns = await page.evaluate(f"Object.values({STORED}.turns)")
    return str(turns[-1]["answer"])


async def test_a_conversation_survives_a_network_outage_and_a_killed_gateway(browser: Browser, tmp_path: Path) -> None:
    questions = ["Tell me a long story about a samovar.", "再讲一个长故事。", "Say goodbye."]
    gateway = Gateway(tmp_path / "state", port=free_port(), max_output_tokens=60, titles=False)
    with gateway:
        async with Wire(urlsplit(gateway.url).port or 0) as wire:
            page = await (await browser.new_context()).new_page()
            sent = listen(page)
            await page.goto(wire.url)
            first = await ask(page, questions[0])
            await first_words_shown(page)
            with gateway.suspended():
                wire.cut()
                await expect_soon(page, lambda: kinds(sent) == ["create", "resume"])
            await ended(first)
            kept = gateway.get(f"/v1/responses/{sent[1]['response_id']}").json()
            assert await words_of(page) == kept["output"][0]["content"][0]["text"]
            second = await ask(page, questions[1])
            await first_words_shown(page)
            with gateway.suspended():
                gateway.stop(signal.SIGKILL)
            await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "lost", timeout=10_000)
            gateway.start()
            await ended(second)
            assert kinds(sent)[2:] == ["create", "resume", "create"]
            third = await ask(page, questions[2])
            await ended(third)
            assert sent[-1]["previous_response_id"]
            await page.reload()
            await expect(messages(page, "user").locator(".message-text")).to_have_text(questions)
            await page.context.close()


async def test_an_answer_survives_the_restart_of_a_real_gateway(browser: Browser, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "state", port=free_port(), max_output_tokens=1_000, titles=False)
    with gateway:
        page = await (await browser.new_context()).new_page()
        sent = listen(page)
        await page.goto(gateway.url)
        answer = await ask(page, LONG)
        await first_words_shown(page)
        gateway.process.send_signal(signal.SIGTERM)  # running answers may end
        await page.wait_for_timeout(500)
        gateway.stop()  # the second signal ends them at once
        gateway.start()
        await expect_soon(page, lambda: kinds(sent)[-1] == "create" and len(sent) > 1)
        await first_words_shown(page)
        await page.get_by_test_id("stop").click()
        await ended(answer, "cancelled")
        await page.context.close()


async def test_an_answer_completed_while_disconnected_is_shown_after_reconnecting(
    browser: Browser, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "state", max_output_tokens=60, resume_grace=60, titles=False) as gateway:
        async with Wire(urlsplit(gateway.url).port or 0) as wire:
            page = await (await browser.new_context()).new_page()
            sent = listen(page)
            await page.goto(wire.url)
            answer = await ask(page, "Tell me a long story about a samovar.")
            await first_words_shown(page)
            with gateway.suspended():
                await page.context.set_offline(offline=True)
                wire.cut()
                await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "lost")
            await expect_soon(page, lambda: gateway.metric("samovar_requests_running") == 0)
            await page.context.set_offline(offline=False)
            await ended(answer)
            assert kinds(sent) == ["create", "resume"]
            await page.context.close()


async def test_a_deletion_reaches_the_server_once_it_cannot_be_undone(
    browser: Browser, tmp_path: Path, tiny_model: Path
) -> None:
    with Gateway(tmp_path / "state", model=tiny_model, context=512, max_output_tokens=8, titles=False) as gateway:
        page = await (await browser.new_context()).new_page()
        await page.goto(gateway.url)
        await ended(await ask(page, "Hi"))
        stored = await page.evaluate(f"Object.values({STORED}.turns)[0].responseId")
        assert gateway.get(f"/v1/responses/{stored}").status_code == 200
        await conversations(page).get_by_test_id("remove").click()
        await expect(page.get_by_test_id("toast")).to_be_hidden(timeout=15_000)
        await expect_soon(page, lambda: gateway.get(f"/v1/responses/{stored}").status_code == 404)
        await page.context.close()
