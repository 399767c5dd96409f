"""Scrolling while answers arrive."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.support.browsing import OpenPage, PlayedGateway, ask

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LINES = "\n\n".join(f"Line {number}" for number in range(60))
DISTANCE = "scroll => scroll.scrollHeight - scroll.clientHeight - scroll.scrollTop"


async def position(page: Page) -> float:
    """Return how far the log is scrolled down, after the next frame."""
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return float(await page.locator("#scroll").evaluate("scroll => scroll.scrollTop"))


async def test_nothing_moves_a_reader_who_has_scrolled_up_and_a_button_leads_to_the_newest(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin(LINES if len(gateway.asked) == 1 else "More."))
    page = await open_page(gateway, viewport={"width": 800, "height": 600})
    await ask(page, "Count.")
    log = page.locator("#scroll")
    await expect(log).to_contain_text("Line 59")
    assert await log.evaluate(DISTANCE) < 8
    await expect(page.get_by_test_id("newest")).to_be_hidden()
    await log.hover()
    await page.mouse.wheel(0, -40)  # a little: the end is still near
    await expect(page.get_by_test_id("newest")).to_be_visible()
    before = await position(page)
    gateway.delta("\n\nOne more line")
    await expect(log).to_contain_text("One more line")
    assert await position(page) == before
    await page.get_by_test_id("composer").fill("Next?")
    await page.get_by_test_id("composer").press("Enter")
    gateway.say_of(1, "response.completed", "completed")
    await expect(log).to_contain_text("More.")
    assert await position(page) == before
    await page.get_by_test_id("newest").click()
    await expect(page.get_by_test_id("newest")).to_be_hidden()
    assert await log.evaluate(DISTANCE) < 8
    gateway.delta("\n\n" + LINES)
    await expect(log).to_contain_text("Line 59")
    await position(page)
    assert await log.evaluate(DISTANCE) < 8


async def test_a_finger_that_rests_on_the_end_of_an_answer_does_not_stop_following(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin(LINES))
    page = await open_page(gateway, viewport={"width": 390, "height": 700}, has_touch=True, is_mobile=True)
    await ask(page, "Count.")
    log = page.locator("#scroll")
    await expect(log).to_contain_text("Line 59")
    await log.evaluate(
        """log => {
            const touch = (y) => new Touch({ identifier: 1, target: log, clientX: 100, clientY: y });
            for (const [kind, y] of [["touchstart", 300], ["touchmove", 302]])
                log.dispatchEvent(new TouchEvent(kind, { touches: [touch(y)], bubbles: true }));
        }"""
    )
    gateway.delta("\n\n" + LINES)
    await position(page)
    await position(page)
    assert await log.evaluate(DISTANCE) < 8
