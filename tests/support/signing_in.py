"""A gateway that requires API keys, and pages of its users."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Browser, Page, expect

from tests.support.browsing import ANSWER_MS
from tests.support.commands import keys
from tests.support.running import Gateway


class Locked:
    """A gateway that requires API keys."""

    def __init__(self, gateway: Gateway) -> None:
        """Serve the users of `gateway`, which `keys` adds."""
        self.gateway = gateway

    def keys(self, *arguments: str) -> str:
        """Run `samovar keys …` and return its output; `add` prints only the key."""
        return keys(self.gateway.state, *arguments)


async def enter(page: Page, key: str) -> None:
    """Types a key."""
    await page.get_by_test_id("key").fill(key)
    await page.get_by_test_id("enter").click()


async def connected(page: Page) -> None:
    """Waits until the page is connected."""
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open", timeout=30_000)


async def sign_in(browser: Browser, url: str, key: str, **context: Any) -> Page:
    """Return the page of a user on a device of its own."""
    page = await (await browser.new_context(**context)).new_page()
    page.set_default_timeout(ANSWER_MS)
    await page.goto(url)
    await enter(page, key)
    await connected(page)
    return page
