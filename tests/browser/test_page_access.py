"""Accessibility of the pages: screen readers, dark mode, phones, networks without internet."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.support.browsing import OpenPage, ask, ended, saying
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ANSWER = (
    "# Tea\n\nA *list*:\n\n- one\n- [two](https://example.org)\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(1)\n```"
)
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}


async def complaints(page: Page) -> list[str]:
    """Return the violations that axe-core finds, by rule and element."""
    found = await Axe().run(page)
    return [
        f"{rule['id']}: {node['html']}\n{node['failureSummary']}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "where"), [("en-US", {}), ("zh-CN", PHONE)], ids=["desk", "phone"])
async def test_the_chat_page_is_accessible(
    open_page: OpenPage, scheme: Literal["light", "dark"], locale: str, where: dict[str, Any]
) -> None:
    page = await open_page(saying(ANSWER), locale, color_scheme=scheme, reduced_motion="reduce", **where)
    assert await complaints(page) == []
    answer = await ask(page, "Tell me of tea.")
    await ended(answer)
    assert await complaints(page) == []
    await page.get_by_test_id("toggle").click()
    await expect(page.locator("body")).to_have_attribute("data-shelf", "open" if where else "closed")
    assert await complaints(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_monitor_page_is_accessible(
    open_page: OpenPage, server: Gateway, scheme: Literal["light", "dark"]
) -> None:
    page = await open_page(url=f"{server.url}/monitor", color_scheme=scheme)
    await expect(page.get_by_test_id("engines").locator("td").first).to_be_visible()
    assert await complaints(page) == []


async def test_the_keyboard_reaches_the_message_at_once_and_forced_colours_keep_all_buttons(
    open_page: OpenPage,
) -> None:
    page = await open_page(saying(ANSWER), forced_colors="active")
    await page.get_by_test_id("skip").focus()
    await expect(page.get_by_test_id("skip")).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("composer")).to_be_focused()
    await page.get_by_test_id("composer").fill("Hi")
    border = "element => getComputedStyle(element).borderTopWidth"
    assert await page.get_by_test_id("send").evaluate(border) == "1px"
    assert await complaints(page) == []


async def test_the_page_sends_requests_only_to_its_gateway(open_page: OpenPage, server: Gateway) -> None:
    page = await open_page(saying(f"{ANSWER}\n\n![a picture](https://example.org/picture.png)"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.reload()
    await ended(await ask(page, "Tell me of tea."))
    addresses = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme in ("http", "https")}
    assert addresses == {urlsplit(server.url).netloc}
