"""`make pictures`: the pictures of the docs, taken of the real gateway with the embedded model."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from tests.support.browsing import CHROMIUM_ARGUMENTS, ask, conversations, ended
from tests.support.running import Gateway

DESK: ViewportSize = {"width": 1180, "height": 780}
PHONE: ViewportSize = {"width": 390, "height": 780}
BEFORE = ["A toast for my sister's wedding", "Which tea for the evening?", "Explain recursion to a child"]
CHINESE = ["茶炊是什么？", "写一首关于秋天的短诗", "帮我给同事写一封感谢信"]
QUESTIONS = [
    "What is a samovar?",
    "Write a short Python function that converts degrees Celsius to Fahrenheit.",
]


async def opened(browser: Browser, url: str, **context: Any) -> Page:
    """The page in a browser of its own, at twice the resolution."""
    settings: dict[str, Any] = {"locale": "en-US", "viewport": DESK, "device_scale_factor": 1.5}
    made = await browser.new_context(**(settings | context))
    page = await made.new_page()
    await page.goto(url)
    return page


async def talk(page: Page, earlier: list[str], questions: list[str]) -> None:
    """Holds some conversations, and the last one to its end."""
    for words in earlier:
        await ask(page, words)
        await page.get_by_test_id("stop").click()
        await ended(page.locator('[data-role="assistant"]'), "cancelled")
        await page.get_by_test_id("new").click()
    for words in questions:
        await ended(await ask(page, words))
    await page.get_by_test_id("composer").hover()


async def take(page: Page, path: Path) -> None:
    """Takes a picture once everything stands still."""
    await page.wait_for_timeout(400)
    await page.screenshot(path=path, animations="disabled")
    print(path)


async def main(docs: Path) -> None:
    """Takes all pictures into a folder."""
    with tempfile.TemporaryDirectory() as state, Gateway(Path(state) / "state", max_output_tokens=160) as gateway:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS
            )
            page = await opened(browser, gateway.url)
            await talk(page, BEFORE, QUESTIONS)
            await take(page, docs / "page.png")
            await page.emulate_media(color_scheme="dark")
            await take(page, docs / "page-dark.png")
            await page.emulate_media(color_scheme="light")
            await page.set_viewport_size(PHONE)
            await take(page, docs / "page-phone.png")
            monitor = await opened(browser, gateway.url + "/monitor")
            await page.set_viewport_size(DESK)
            await ended(await ask(page, "Tell me about green tea."))
            await monitor.wait_for_timeout(4_500)
            await take(monitor, docs / "monitor.png")
            chinese = await opened(browser, gateway.url, locale="zh-CN")
            await talk(chinese, CHINESE[1:], CHINESE[:1])
            await chinese.get_by_test_id("new").click()
            await expect(conversations(chinese)).to_have_count(3)
            await take(chinese, docs / "page-zh.png")
            await browser.close()


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(folder))
