"""One user on several devices: each shows the conversations of the gateway, and what the others change."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from gateway.cli.launcher import free_port
from tests.support.browsing import ANSWER_MS, SOCKET, Wire, ask, conversations, ended, first_words_shown, messages
from tests.support.running import Gateway
from tests.support.signing_in import Locked, connected, sign_in

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

OpenDevices = Callable[[int], Awaitable[list[Page]]]
SOON = 20_000
"""Milliseconds in which a change made on another device is shown, on a busy machine."""


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Locked]:
    """A gateway with API keys and the tiny model."""
    with Gateway(tmp_path_factory.mktemp("office"), model=tiny_model, context=1024, max_output_tokens=16) as gateway:
        yield Locked(gateway)


USERS = count()
FILL = """() => {
    for (let words = "x".repeat(1 << 20), number = 0; words !== ""; number += 1) {
        try { localStorage.setItem(`other${number}`, words); } catch { words = words.slice(words.length / 2 + 0.5); }
    }
}"""
"""Takes all room of the browser's storage."""


@pytest_asyncio.fixture(loop_scope="module")
async def open_devices(browser: Browser, locked: Locked) -> AsyncIterator[OpenDevices]:
    """Opens pages of a new user, each in a separate browser context, whose scripts must not fail."""
    opened: list[Page] = []
    failures: list[str] = []

    async def open_(number: int) -> list[Page]:
        key = locked.keys("add", f"user{next(USERS)}")
        for _ in range(number):
            page = await sign_in(browser, locked.gateway.url, key)
            page.on("pageerror", lambda error: failures.append(str(error)))
            opened.append(page)
        return opened

    yield open_
    for page in opened:
        await page.context.close()
    assert failures == []


async def turns_of(page: Page) -> list[str]:
    """What is said in the open conversation."""
    return await page.get_by_test_id("message").locator(".message-text").all_text_contents()


async def in_step(here: Page, there: Page) -> None:
    """Expects that two devices show the same turns."""
    said = await turns_of(here)
    await expect(there.get_by_test_id("message").locator(".message-text")).to_have_text(said, timeout=SOON)


async def test_a_second_device_shows_the_list_the_turns_and_what_is_added(open_devices: OpenDevices) -> None:
    here, there = await open_devices(2)
    await ended(await ask(here, "Tea?"))
    await expect(conversations(there)).to_have_text([re.compile(r"Tea\?")], timeout=SOON)
    await conversations(there).get_by_test_id("open").click()
    await in_step(here, there)
    await ended(await ask(there, "And coffee?"))
    await expect(messages(here, "user")).to_have_count(2, timeout=SOON)
    await ended(messages(here, "assistant").last)
    await in_step(there, here)
    await here.reload()
    await in_step(there, here)
    await here.get_by_test_id("new").click()
    await ended(await ask(here, "Something else"))
    await expect(conversations(there)).to_have_text([re.compile("Something"), re.compile("Tea")], timeout=SOON)


def lengthen(client: WebSocketRoute) -> None:
    """Pass messages on, and let the model end no answer by itself."""
    server = client.connect_to_server()

    def changed(message: str | bytes) -> None:
        request = json.loads(message)
        if request["type"] == "response.create":
            request["logit_bias"] = {"65": 100}
        server.send(json.dumps(request))

    client.on_message(changed)


async def test_an_answer_is_shown_on_all_devices_while_it_grows(
    browser: Browser, tmp_path: Path, tiny_model: Path
) -> None:
    with Gateway(tmp_path / "long", model=tiny_model, context=4096, max_output_tokens=3_000) as gateway:
        locked = Locked(gateway)
        key = locked.keys("add", "anna")
        here, there = [await sign_in(browser, gateway.url, key) for _ in range(2)]
        await here.route_web_socket(SOCKET, lengthen)
        await here.reload()
        await connected(here)
        await ask(here, "A story")
        await first_words_shown(here)
        with gateway.suspended():
            await conversations(there).get_by_test_id("open").click()
            await first_words_shown(there)
        for page in (here, there):
            await ended(messages(page, "assistant"))
        await in_step(here, there)
        for page in (here, there):
            await page.context.close()


async def test_a_text_is_found_and_its_place_is_opened(open_devices: OpenDevices) -> None:
    here, there = await open_devices(2)
    await ended(await ask(here, "What is a samovar?"))
    await ended(await ask(here, "我想喝茶。"))
    await there.get_by_test_id("search").press_sequentially("茶")
    await expect(there.get_by_test_id("found").locator("mark")).to_have_text("茶", timeout=SOON)
    await expect(there.get_by_test_id("conversations")).to_be_hidden()
    await there.get_by_test_id("found").locator(".found-passage").click()
    await expect(messages(there, "user").locator(".message-text")).to_have_text(["What is a samovar?", "我想喝茶。"])
    await there.get_by_test_id("search").fill("Samovar?")
    await expect(there.get_by_test_id("found")).to_contain_text(["What is a samovar?"], timeout=SOON)
    await there.get_by_test_id("search").fill("nowhere")
    await expect(there.get_by_test_id("results")).to_contain_text("Nothing found", timeout=SOON)
    await there.get_by_test_id("search").press("Escape")
    await expect(conversations(there)).to_have_count(1)


async def test_a_browser_without_space_loads_conversations_from_the_gateway_again(open_devices: OpenDevices) -> None:
    [here] = await open_devices(1)
    await ended(await ask(here, "Old?"))
    said = await turns_of(here)
    await here.get_by_test_id("new").click()
    await here.evaluate(FILL)
    await ended(await ask(here, "New?"))
    await expect(here.get_by_test_id("toast")).to_be_hidden()
    await expect(conversations(here)).to_have_count(2)
    await conversations(here).filter(has_text="Old").get_by_test_id("open").click()
    await expect(here.get_by_test_id("message").locator(".message-text")).to_have_text(said, timeout=SOON)
    await here.reload()
    await expect(conversations(here)).to_have_count(2, timeout=SOON)
    await expect(here.get_by_test_id("message").locator(".message-text")).to_have_text(said, timeout=SOON)


async def test_devices_stay_in_step_while_the_gateway_restarts_and_the_network_drops(
    browser: Browser, tmp_path: Path, tiny_model: Path
) -> None:
    settings = {"model": tiny_model, "context": 2048, "max_output_tokens": 16}
    with Gateway(tmp_path / "office", port=free_port(), **settings) as gateway:
        key = Locked(gateway).keys("add", "anna")
        async with Wire(urlsplit(gateway.url).port or 0) as wire:
            here = await sign_in(browser, gateway.url, key)
            there = await sign_in(browser, wire.url, key)
            await ended(await ask(here, "One?"))
            await conversations(there).get_by_test_id("open").click(timeout=SOON)
            wire.cut()
            await ended(await ask(here, "Two?"))
            await expect(messages(there, "user")).to_have_count(2, timeout=SOON)
            wire.stall()
            await ended(await ask(here, "Three?"))
            await expect(there.get_by_test_id("status")).to_have_attribute("data-state", "lost", timeout=SOON)
            await there.get_by_test_id("composer").fill("Four?")
            await there.get_by_test_id("composer").press("Enter")
            wire.cut()
            wire.flow()
            # It was asked without knowing of the third question, and so is another version of it.
            await expect(messages(here, "user").last).to_contain_text("Four?", timeout=ANSWER_MS)
            gateway.stop()
            await conversations(here).get_by_test_id("rename").click()
            await here.keyboard.type("Numbers")
            await here.keyboard.press("Enter")
            gateway.start()
            await expect(conversations(there)).to_have_text([re.compile("Numbers")], timeout=ANSWER_MS)
            for page in (here, there):
                await connected(page)
                await ended(messages(page, "assistant").last)
            await ended(await ask(there, "Five?"))
            await expect(messages(here, "user")).to_have_count(4, timeout=SOON)
            await ended(messages(here, "assistant").last)
            await in_step(here, there)
            asked = messages(there, "user").locator(".message-text")
            await expect(asked).to_have_text(["One?", "Two?", "Four?", "Five?"])
            await there.locator('[data-testid="back"]:visible').click()
            for page in (here, there):
                asked = messages(page, "user").locator(".message-text")
                await expect(asked).to_have_text(["One?", "Two?", "Three?"], timeout=SOON)
            for page in (here, there):
                await page.context.close()


async def test_titles_branches_and_drafts_follow_to_other_devices(open_devices: OpenDevices) -> None:
    here, there = await open_devices(2)
    await ended(await ask(here, "One?"))
    await conversations(there).get_by_test_id("open").click()
    await messages(here, "user").first.hover()
    await here.get_by_test_id("edit").click()
    await here.get_by_test_id("editor-text").fill("Uno?")
    await here.get_by_test_id("editor-text").press("Enter")
    await ended(messages(here, "assistant").last)
    user = messages(there, "user").locator(".message-text")
    await expect(user).to_have_text(["Uno?"], timeout=SOON)
    await expect(there.get_by_test_id("versions")).to_contain_text("2 / 2", timeout=SOON)
    await there.get_by_test_id("back").click()
    await expect(messages(here, "user").locator(".message-text")).to_have_text(["One?"], timeout=SOON)
    await conversations(there).get_by_test_id("rename").click()
    await there.keyboard.type("Numbers")
    await there.keyboard.press("Enter")
    await expect(conversations(here)).to_have_text([re.compile("Numbers")], timeout=SOON)
    await here.get_by_test_id("composer").fill("A thought")
    await expect(there.get_by_test_id("composer")).to_have_value("A thought", timeout=SOON)
    await here.get_by_test_id("composer").fill("")
    await expect(there.get_by_test_id("composer")).to_have_value("", timeout=SOON)


async def test_a_conversation_deleted_on_one_device_is_gone_from_the_other_once_it_cannot_be_undone(
    open_devices: OpenDevices,
) -> None:
    here, there = await open_devices(2)
    await ended(await ask(here, "Tea?"))
    await conversations(there).get_by_test_id("open").click()
    await there.get_by_test_id("composer").fill("A thought")
    await conversations(here).get_by_test_id("remove").click()
    await here.get_by_test_id("undo").click()
    await expect(conversations(here)).to_have_count(1)
    await conversations(here).get_by_test_id("remove").click()
    await expect(here.get_by_test_id("toast")).to_be_hidden(timeout=15_000)
    await expect(conversations(there)).to_have_count(0, timeout=SOON)
    await expect(messages(there, "user")).to_have_count(0)
    await expect(there.get_by_test_id("composer")).to_have_value("A thought")
    await here.reload()
    await expect(here.get_by_test_id("conversations")).to_contain_text("No conversations yet")


async def test_what_was_changed_without_a_connection_is_kept_and_sent_later(open_devices: OpenDevices) -> None:
    here, there = await open_devices(2)
    await ended(await ask(here, "Tea?"))
    await conversations(there).get_by_test_id("open").click()
    await in_step(here, there)
    await there.route(re.compile("/v1/"), lambda route: route.abort())
    await there.evaluate("dispatchEvent(new Event('offline'))")
    await conversations(there).get_by_test_id("rename").click()
    await there.keyboard.type("About tea")
    await there.keyboard.press("Enter")
    await expect(conversations(there)).to_have_text([re.compile("About tea")])
    await there.unroute(re.compile("/v1/"))
    await there.reload()
    await expect(conversations(here)).to_have_text([re.compile("About tea")], timeout=SOON)
