"""Conversations of a browser that become the user's at the first sign-in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.support.browsing import conversations, ended, expect_soon, messages
from tests.support.running import Gateway
from tests.support.signing_in import Locked, connected, enter

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Locked]:
    """A gateway with API keys and the tiny model."""
    with Gateway(tmp_path_factory.mktemp("import"), model=tiny_model, context=512, max_output_tokens=16) as gateway:
        locked = Locked(gateway)
        locked.keys("add", "somebody")
        yield locked


def stored(number: int) -> str:
    """Return a conversation with two versions of its second turn, as earlier pages have stored it."""
    ids = [f"{number:012x}{turn:012x}" for turn in range(3)]
    turns: dict[str, dict[str, Any]] = {
        id_: {"id": id_, "parent": parent, "question": f"Question {number}", "answer": f"Answer {turn}."}
        | {"state": "done", "at": 1_700_000_000_000 + number}
        for turn, (id_, parent) in enumerate(zip(ids, (None, ids[0], ids[0]), strict=True))
    }
    data = {"id": f"{number:024x}", "title": f"Old {number}", "changed": number, "turns": turns}
    return json.dumps({**data, "chosen": {"": ids[0], ids[0]: ids[1]}})


async def bring(browser: Browser, url: str, count: int) -> Page:
    """Open the page in a browser that has stored conversations without a key."""
    page = await (await browser.new_context()).new_page()
    await page.goto(url)
    entries = {f"samovar.conversation.{number:024x}": stored(number) for number in range(count)}
    await page.evaluate("(entries) => Object.assign(localStorage, entries)", entries)
    await page.reload()
    return page


def at_gateway(locked: Locked, key: str) -> list[dict[str, Any]]:
    """The user's conversations, the last changed first."""
    found = locked.gateway.get("/v1/conversations?limit=100", Authorization=f"Bearer {key}").json()
    return list(found["data"])


def turns_at_gateway(locked: Locked, key: str) -> list[int]:
    """The number of turns of each of the user's conversations."""
    paths = [f"/v1/conversations/{conversation['id']}" for conversation in at_gateway(locked, key)]
    return [len(locked.gateway.get(path, Authorization=f"Bearer {key}").json()["turns"]) for path in paths]


async def test_conversations_are_imported_once_with_all_branches(browser: Browser, locked: Locked) -> None:
    key = locked.keys("add", "anna")
    page = await bring(browser, locked.gateway.url, 3)
    await enter(page, key)
    await connected(page)
    await expect_soon(page, lambda: len(at_gateway(locked, key)) == 3)
    await expect(page.get_by_test_id("kept")).to_be_hidden()
    titles = [conversation["metadata"]["title"] for conversation in at_gateway(locked, key)]
    assert sorted(titles) == ["Old 0", "Old 1", "Old 2"]
    await page.reload()
    await connected(page)
    await expect(conversations(page)).to_have_count(3)
    await conversations(page).filter(has_text="Old 1").get_by_test_id("open").click()
    answers = messages(page, "assistant").locator(".message-text")
    await expect(answers).to_have_text(["Answer 0.", "Answer 1."])
    there = await (await browser.new_context()).new_page()
    await there.goto(locked.gateway.url)
    await enter(there, key)
    await conversations(there).filter(has_text="Old 1").get_by_test_id("open").click()
    answers = messages(there, "assistant").locator(".message-text")
    await expect(answers).to_have_text(["Answer 0.", "Answer 1."])
    await there.get_by_test_id("forth").last.click()
    await expect(answers).to_have_text(["Answer 0.", "Answer 2."])
    await there.get_by_test_id("composer").fill("More?")
    await there.get_by_test_id("composer").press("Enter")
    await ended(messages(there, "assistant").nth(2))
    assert len(at_gateway(locked, key)) == 3
    await page.context.close()
    await there.context.close()


async def test_an_interrupted_import_continues_without_duplicates(browser: Browser, locked: Locked) -> None:
    key = locked.keys("add", "bert")
    page = await bring(browser, locked.gateway.url, 3)
    sent: list[str] = []
    lost: list[str] = []

    async def lose(route: Route) -> None:
        """Lose the answer to the second import of turns."""
        sent.append(route.request.url)
        if len(sent) == 2:
            path, body = urlsplit(route.request.url).path, route.request.post_data_json or {}
            await asyncio.to_thread(locked.gateway.post, path, body, Authorization=f"Bearer {key}")
            await route.abort()
            lost.append(path)
        else:
            await route.continue_()

    await page.route(re.compile(r"/turns$"), lose)
    await enter(page, key)
    await expect_soon(page, lambda: len(lost) == 1)
    await page.unroute(re.compile(r"/turns$"))
    await page.reload()
    await connected(page)
    await expect_soon(page, lambda: len(at_gateway(locked, key)) == 3)
    await expect_soon(page, lambda: turns_at_gateway(locked, key) == [3, 3, 3])
    await page.context.close()


async def test_without_keys_the_page_says_where_conversations_are(browser: Browser, shared_server: Gateway) -> None:
    for locale, words in (
        ("en-US", "only in this browser"),
        ("zh-CN", "只保存在此浏览器中"),
        ("zh-TW", "只儲存在此瀏覽器中"),
    ):
        page = await (await browser.new_context(locale=locale)).new_page()
        await page.goto(shared_server.url)
        await connected(page)
        await expect(page.get_by_test_id("kept")).to_contain_text(words)
        await expect(page.get_by_test_id("search")).to_be_hidden()
        await page.context.close()
