"""The user's choices of language and colours, and the operator's line below answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.support.browsing import OpenPage, ask, ended, saying
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

NOTICE = "Ask the library before you quote this."


async def test_the_language_can_be_chosen_and_stays(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    await page.get_by_test_id("composer").fill("A draft")
    await page.get_by_test_id("language").select_option("zh-Hant")
    await expect(page.locator("html")).to_have_attribute("lang", "zh-Hant")
    await expect(page.get_by_test_id("composer")).to_have_value("A draft")
    await page.goto(page.url)
    await expect(page.get_by_test_id("send")).to_have_attribute("aria-label", "傳送")
    await page.get_by_test_id("language").select_option("auto")
    await expect(page.locator("html")).to_have_attribute("lang", "en")


async def test_the_colours_can_be_chosen_and_stay(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."), color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(background)
    await page.get_by_test_id("theme").select_option("dark")
    dark = await page.evaluate(background)
    assert dark != light
    await page.reload()
    assert await page.evaluate(background) == dark
    await page.emulate_media(color_scheme="dark")
    await page.get_by_test_id("theme").select_option("light")
    assert await page.evaluate(background) == light
    await page.get_by_test_id("theme").select_option("auto")
    assert await page.evaluate(background) == dark


@pytest.mark.parametrize(("locale", "words"), [("en-US", "Please verify"), ("zh-CN", "内容由 AI 生成，请核实")])
async def test_a_line_below_answers_says_that_they_need_checking(open_page: OpenPage, locale: str, words: str) -> None:
    page = await open_page(saying("Fine."), locale)
    await expect(page.get_by_test_id("generated")).to_be_hidden()
    await ended(await ask(page, "Hi"))
    await expect(page.get_by_test_id("generated")).to_contain_text(words)


async def test_the_operator_words_the_line_below_answers(open_page: OpenPage, tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path / "state", model=tiny_model, context=512, answer_notice=NOTICE) as gateway:
        page = await open_page(saying("Fine."), url=gateway.url)
        await ended(await ask(page, "Hi"))
        await expect(page.get_by_test_id("generated")).to_have_text(NOTICE)
        await page.route("**/page.json", lambda route: route.fulfill(json={"answer_notice": ""}))
        await page.reload()
        await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
        await expect(page.get_by_test_id("generated")).to_be_hidden()
