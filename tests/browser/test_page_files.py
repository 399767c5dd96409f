"""The files that the page loads, and files that users give it."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, FilePayload, Response, expect

from tests.support.browsing import OpenPage, ask, messages, name_model, saying
from tests.support.documents import docx, paragraph, pdf
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LARGEST_FIRST_LOAD = 400_000
"""Bytes of all files that the page loads before its user does anything."""


async def test_a_second_visit_loads_the_page_anew_and_all_of_its_files_from_the_cache(open_page: OpenPage) -> None:
    page = await open_page()
    found: list[Response] = []
    page.on("response", lambda response: found.append(response))
    await page.goto(page.url)
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    static = [response for response in found if "/static/" in response.url]
    assert {response.headers["cache-control"] for response in static} == {"public, max-age=31536000, immutable"}
    loaded = await page.evaluate(
        "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/static/'))"
        ".map(({ transferSize, decodedBodySize }) => [transferSize, decodedBodySize])"
    )
    assert {transferred for transferred, _ in loaded} == {0}
    assert 100_000 < sum(size for _, size in loaded) < LARGEST_FIRST_LOAD
    assert next(response for response in found if response.url == page.url).headers["cache-control"] == "no-cache"


DROP = """([name, type, content]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([content], name, { type }));
    const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.body.dispatchEvent(drop);
    return drop.defaultPrevented;
}"""


async def test_a_dropped_text_becomes_part_of_the_message(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    assert await page.evaluate(DROP, ["notes.md", "", "# Tea\n"])
    await expect(page.get_by_test_id("chip")).to_contain_text("notes.md")
    await ask(page, "What is this?")
    await expect(messages(page, "user")).to_contain_text("notes.md")
    assert gateway.asked[0]["input"] == "notes.md:\n# Tea\n\nWhat is this?"


@pytest.mark.parametrize(
    ("name", "locale", "reason"),
    [
        ("a.png", "en-US", "only texts, PDF and Word files"),
        ("b.txt", "en-US", "cannot be read"),
        ("a.png", "zh-CN", "只能读取文本、PDF"),
    ],
)
async def test_another_file_is_refused_in_words(open_page: OpenPage, name: str, locale: str, reason: str) -> None:
    page = await open_page(locale=locale)
    content = await page.evaluate_handle("new Uint8Array([0xff, 0xfe, 0x00])")
    assert await page.evaluate(DROP, [name, "", content])
    await expect(page.get_by_test_id("toast")).to_contain_text(name)
    await expect(page.get_by_test_id("toast")).to_contain_text(reason)
    await expect(page.get_by_test_id("chip")).to_have_count(0)


async def test_texts_of_office_files_are_added_with_their_numbers_of_tokens(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    files: list[FilePayload] = [
        {"name": "tea.pdf", "mimeType": "application/pdf", "buffer": pdf(["Tea is hot."])},
        {"name": "water.docx", "mimeType": "", "buffer": docx(paragraph("Water, too."))},
        {"name": "a.csv", "mimeType": "text/csv", "buffer": b"a,b"},
    ]
    await page.get_by_test_id("files").set_input_files(files)
    await expect(page.get_by_test_id("chip")).to_contain_text(["tea.pdf", "water.docx", "a.csv"])
    for number in range(3):
        await expect(page.get_by_test_id("chip").nth(number)).to_contain_text("tokens")
    await ask(page, "What is this?")
    said = ["tea.pdf:\nTea is hot.", "water.docx:\nWater, too.", "a.csv:\na,b", "What is this?"]
    assert gateway.asked[0]["input"] == "\n\n".join(said)


@pytest.mark.parametrize(("locale", "label"), [("en-US", "tokens"), ("zh-CN", "词元")])
async def test_texts_that_exceed_the_context_can_be_cut_to_their_beginning(
    open_page: OpenPage, locale: str, label: str
) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway, locale, before=lambda page: name_model(page, "m", context_length=400))
    for name, words in (("short.txt", "Short."), ("long.txt", "Tea. " * 500)):
        assert await page.evaluate(DROP, [name, "", words])
    warning = page.get_by_test_id("too-long")
    await expect(warning).to_contain_text(label)
    await page.get_by_test_id("take-beginning").click()
    await expect(warning).to_be_hidden()
    await page.get_by_test_id("send").click()
    short, long = gateway.asked[0]["input"].split("\n\n")
    assert short == "short.txt:\nShort."
    assert long.startswith("long.txt:\nTea. Tea.")
    assert 500 < len(long) < 2_000


async def test_an_office_file_without_text_is_refused_in_words(browser: Browser, server: Gateway) -> None:
    page = await browser.new_page()  # browsers report the refused request in the console
    await page.goto(server.url)
    await page.get_by_test_id("files").set_input_files(
        {"name": "scan.pdf", "mimeType": "application/pdf", "buffer": pdf([""])}
    )
    await expect(page.get_by_test_id("toast")).to_contain_text("scan.pdf was not added: it has no readable text")
    await expect(page.get_by_test_id("chip")).to_have_count(0)
    await page.close()
