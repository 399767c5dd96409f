"""Layout of the chat page: narrow, wide and zoomed windows."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.support.browsing import OpenPage, ask, ended, name_model, saying

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SIZES = [(320, 256), (320, 640), (360, 740), (390, 844), (768, 1024), (1280, 800), (3840, 2160)]
"""Width and height in CSS pixels; 320 × 256 is a window of 1280 × 1024 at 400 % zoom."""
LONG_NAME = "a-model-with-a-very-long-name-0.5b-instruct-q4_k_m-and-more-of-it"


async def overflowing(page: Page, width: int, height: int) -> list[str]:
    """Return the names of the elements that reach beyond the window of this size."""
    await page.set_viewport_size({"width": width, "height": height})
    found: list[str] = await page.evaluate(
        "() => [...document.querySelectorAll('.bar > *, .foot, .composer, .composer > *, #log, .message')]"
        ".filter((element) => { const box = element.getBoundingClientRect();"
        " return box.width > 0 && (box.left < 0 || box.right > innerWidth); })"
        ".map((element) => element.id || element.className)"
        ".concat(document.documentElement.scrollWidth > innerWidth ? ['page'] : [])"
    )
    return found


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
async def test_a_long_model_name_does_not_widen_the_page(open_page: OpenPage, locale: str) -> None:
    page = await open_page(saying("Fine."), locale, before=lambda page: name_model(page, LONG_NAME))
    await expect(page.locator("#model")).to_have_attribute("title", LONG_NAME)
    for size in SIZES:
        assert await overflowing(page, *size) == [], size
    await ended(await ask(page, "x" * 200))
    for size in SIZES:
        assert await overflowing(page, *size) == [], size
        await expect(page.get_by_test_id("send")).to_be_in_viewport(ratio=1)


async def test_a_whole_conversation_is_printed_in_black_on_white(open_page: OpenPage) -> None:
    page = await open_page(saying("\n\n".join(f"Line {n}" for n in range(150))), color_scheme="dark")
    await ended(await ask(page, "Count."))
    pages = len(re.findall(rb"/Type\s*/Page\b", await page.pdf(format="A4")))
    assert pages > 3
    await page.emulate_media(media="print")
    text = page.locator(".message-text").first
    colours = "element => [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor]"
    assert await text.evaluate(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    for hidden in (page.get_by_test_id("composer"), page.get_by_test_id("shelf"), page.get_by_test_id("copy")):
        await expect(hidden).to_be_hidden()


async def test_on_a_large_screen_the_field_of_an_empty_page_is_near_the_middle(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."), viewport={"width": 3840, "height": 2160})
    middle = "field => { const box = field.getBoundingClientRect(); return (box.top + box.bottom) / 2 / innerHeight }"
    assert 0.4 < await page.get_by_test_id("composer").evaluate(middle) < 0.6
    await ended(await ask(page, "Hi"))
    assert await page.get_by_test_id("composer").evaluate(middle) > 0.9


@pytest.mark.parametrize(
    ("name", "facts", "shown"),
    [
        ("qwen2.5-0.5b-instruct-q4_k_m", {}, "Qwen2.5 0.5B Instruct"),
        ("smollm2-135m-instruct", {}, "Smollm2 135M Instruct"),
        ("q4_0", {}, "Q4_0"),
        ("x-7b", {"display_name": "Our model"}, "Our model"),
    ],
)
async def test_a_model_has_a_readable_name(open_page: OpenPage, name: str, facts: dict[str, str], shown: str) -> None:
    page = await open_page(before=lambda page: name_model(page, name, **facts))
    await expect(page.locator("#model")).to_have_text(shown)
