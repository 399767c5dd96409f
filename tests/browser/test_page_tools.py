"""The menu of the open conversation: instructions and sampling, export and import; and the state of the context."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.support.browsing import (
    OpenPage,
    PlayedGateway,
    ask,
    conversations,
    ended,
    expect_soon,
    messages,
    name_model,
    saying,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

OFFERED = {"Letter": "Write polite letters."}


async def choose(page: Page, item: str) -> None:
    """Open the menu by keyboard, and choose an entry."""
    await page.get_by_test_id("menu-button").press("Enter")
    await page.get_by_test_id(f"menu-{item}").press("Enter")


async def exported(page: Page, item: str) -> tuple[str, str]:
    """Choose an entry that exports; return name and text of the file."""
    async with page.expect_download() as downloading:
        await choose(page, item)
    download = await downloading.value
    path = Path(await download.path())
    return download.suggested_filename, await asyncio.to_thread(path.read_text)


async def offer(page: Page) -> None:
    """Let the gateway offer instructions."""
    facts: dict[str, Any] = {
        "encode_ahead": True,
        "answer_notice": None,
        "languages": [],
        "offered_instructions": OFFERED,
    }
    await page.route("**/page.json", lambda route: route.fulfill(json=facts))


async def test_instructions_and_sampling_apply_to_one_conversation_and_survive_a_reload(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    await choose(page, "instructions")
    await expect(page.get_by_test_id("instructions")).to_be_focused()
    await page.get_by_test_id("instructions").fill("  Be brief. ")
    await page.get_by_test_id("sampling").locator("summary").click()
    await page.get_by_test_id("temperature").fill("0.2")
    await page.get_by_test_id("seed").fill("7")
    await page.get_by_test_id("apply").click()
    await ended(await ask(page, "Hi"))
    expected = {"instructions": "Be brief.", "temperature": 0.2, "seed": 7}
    assert expected.items() <= gateway.asked[0].items()
    await page.reload()
    await expect_soon(page, lambda: len(gateway.ahead) > 0)
    await ended(await ask(page, "And now?"))
    assert expected.items() <= gateway.asked[1].items()
    assert gateway.ahead[-1]["instructions"] == "Be brief.", "another prompt than the next request's was prepared"
    await page.get_by_test_id("new").click()
    await ended(await ask(page, "Hello"))
    assert expected.keys().isdisjoint(gateway.asked[2])


async def test_a_number_that_the_gateway_would_refuse_cannot_be_applied(open_page: OpenPage) -> None:
    page = await open_page()
    await choose(page, "instructions")
    await page.get_by_test_id("sampling").locator("summary").click()
    await page.get_by_test_id("temperature").fill("3")
    await page.get_by_test_id("apply").click()
    await expect(page.get_by_test_id("instructions-dialog")).to_be_visible()
    await page.get_by_test_id("temperature").fill("")
    await page.get_by_test_id("apply").click()
    await expect(page.get_by_test_id("instructions-dialog")).to_be_hidden()


@pytest.mark.parametrize(("locale", "example"), [("en-US", "Proofread"), ("zh-CN", "校对"), ("zh-TW", "校對")])
async def test_own_offered_and_example_instructions_can_be_chosen(
    open_page: OpenPage, locale: str, example: str
) -> None:
    page = await open_page(locale=locale, before=offer)
    await choose(page, "instructions")
    ready, field = page.get_by_test_id("ready"), page.get_by_test_id("instructions")
    await ready.select_option("Letter")
    await expect(field).to_have_value(OFFERED["Letter"])
    await ready.select_option(example)
    await expect(field).not_to_have_value(OFFERED["Letter"])
    await field.fill("Only rhymes.\nAlways.")
    await page.get_by_test_id("save-instructions").click()
    assert (await Axe().run(page)).violations_count == 0
    await page.reload()
    await choose(page, "instructions")
    await ready.select_option("Only rhymes.")
    await expect(field).to_have_value("Only rhymes.\nAlways.")
    await page.get_by_test_id("forget-instructions").click()
    await expect(ready.locator("option", has_text="Only rhymes.")).to_have_count(0)


async def test_a_conversation_is_exported_as_markdown(open_page: OpenPage) -> None:
    page = await open_page(saying("**Hot** water."))
    await ended(await ask(page, "What: is it?"))
    name, text = await exported(page, "markdown")
    assert name == "What is it.md"
    assert text == "# What: is it?\n\n## You\n\nWhat: is it?\n\n## Samovar\n\n**Hot** water.\n"


async def test_all_conversations_are_exported_and_imported_by_another_browser(open_page: OpenPage) -> None:
    gateway = saying("Fine.")
    page = await open_page(gateway)
    await ended(await ask(page, "One?"))
    await page.get_by_test_id("regenerate").click()
    await expect(page.get_by_test_id("versions")).to_contain_text("2 / 2")
    await page.get_by_test_id("new").click()
    await ended(await ask(page, "Two?"))
    name, everything = await exported(page, "all")
    assert name.endswith(".json")
    _, single = await exported(page, "json")
    assert [one["title"] for one in json.loads(single)["conversations"]] == ["Two?"]

    other = await open_page(saying("Fine."))
    for _ in range(2):  # again: nothing is there twice
        await other.get_by_test_id("import-file").set_input_files(
            {"name": name, "mimeType": "application/json", "buffer": everything.encode()}
        )
        await expect(other.get_by_test_id("toast")).to_contain_text("2 conversations were imported")
        await expect(conversations(other)).to_have_count(2)
    await conversations(other).filter(has_text="One?").get_by_test_id("open").click()
    await expect(other.get_by_test_id("versions")).to_contain_text("2 / 2")
    await conversations(other).filter(has_text="One?").get_by_test_id("remove").click()
    await other.get_by_test_id("import-file").set_input_files(
        {"name": name, "mimeType": "application/json", "buffer": everything.encode()}
    )
    await expect(conversations(other)).to_have_count(2)
    await expect(conversations(other).filter(has_text="One?")).to_have_count(1)


def conversation(**turn: Any) -> dict[str, Any]:
    """A conversation of one turn, as a file holds it."""
    whole = {"id": "t", "parent": None, "question": "q", "answer": "a", "state": "done", "at": 1, **turn}
    return {"id": "c", "title": "Imported", "changed": 1, "turns": {"t": whole}, "chosen": {"": "t"}}


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        json.dumps([1]),
        json.dumps({"format": "samovar-conversations", "version": 2, "conversations": []}),
        json.dumps({"format": "samovar-conversations", "version": 1, "conversations": [conversation(question=1)]}),
        json.dumps({"format": "samovar-conversations", "version": 1, "conversations": [conversation(parent="t")]}),
        json.dumps({"format": "samovar-conversations", "version": 1, "conversations": [conversation(parent="x")]}),
    ],
)
async def test_another_file_is_not_imported(open_page: OpenPage, content: str) -> None:
    page = await open_page()
    await page.get_by_test_id("import-file").set_input_files(
        {"name": "a.json", "mimeType": "application/json", "buffer": content.encode()}
    )
    await expect(page.get_by_test_id("toast")).to_contain_text("Nothing was imported")
    await expect(conversations(page)).to_have_count(0)


async def test_markup_in_an_imported_conversation_is_shown_as_text_or_cleaned(open_page: OpenPage) -> None:
    page = await open_page()
    bad = "<img src=x onerror=\"document.title='hacked'\">"
    content = {
        "format": "samovar-conversations",
        "version": 1,
        "conversations": [conversation(question=bad, answer=bad)],
    }
    await page.get_by_test_id("import-file").set_input_files(
        {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(content).encode()}
    )
    await conversations(page).get_by_test_id("open").click()
    await expect(messages(page, "user")).to_contain_text("<img")
    assert await page.locator("[onerror]").count() == 0
    assert await page.title() != "hacked"


async def test_the_share_of_the_context_and_where_turns_were_dropped_are_shown(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        number = len(gateway.asked)
        usage = {"input_tokens": 100 * number, "output_tokens": 50, "input_tokens_details": {"cached_tokens": 0}}
        gateway.say_of(number, "response.created", "in_progress")
        content = [{"type": "output_text", "text": f"Answer {number}."}]
        response = {"id": f"resp_{number}", "status": "completed", "output": [{"type": "message", "content": content}]}
        gateway.say(
            "response.completed", response={**response, "usage": usage, "samovar": {"prompt_turns": min(number, 2)}}
        )

    page = await open_page(PlayedGateway(play), before=lambda page: name_model(page, "m", context_length=400))
    await expect(page.get_by_test_id("context")).to_be_hidden()
    await ended(await ask(page, "One?"))
    await ended(await ask(page, "Two?"))
    await expect(page.get_by_test_id("context")).to_have_text("Context 63% full: 250 of 400 tokens")
    await expect(page.get_by_test_id("context-line")).to_have_count(0)
    await ended(await ask(page, "Three?"))
    line = page.get_by_test_id("context-line")
    following = "line => line.nextElementSibling.querySelector('.message-text').textContent"
    assert await line.evaluate(following) == "Two?"
    await page.reload()
    assert await line.evaluate(following) == "Two?"
    await expect(page.get_by_test_id("context")).to_have_text("Context 88% full: 350 of 400 tokens")
    await page.get_by_test_id("new").click()
    await expect(line).to_have_count(0)
    await expect(page.get_by_test_id("context")).to_be_hidden()


async def use_titles(page: Page) -> None:
    """Let the gateway allow titles by the model."""
    await page.route("**/page.json", lambda route: route.fulfill(json={"encode_ahead": False, "titles": True}))


def answer_title(gateway: PlayedGateway, words: str) -> None:
    """Answer the page's newest request for a title."""
    content = [{"type": "output_text", "text": words}]
    response = {"id": "resp_t", "status": "completed", "output": [{"type": "message", "content": content}]}
    event = {"type": "response.completed", "sequence_number": 9, "stream_id": "title", "response": response}
    gateway.sockets[-1].send(json.dumps(event))


async def test_the_model_writes_the_title_while_the_engines_are_idle(open_page: OpenPage) -> None:
    gateway = saying("Hot.")
    page = await open_page(gateway, before=use_titles)
    await ended(await ask(page, "What is tea like?"))
    await expect(conversations(page)).to_have_text(["What is tea like?"])
    await expect_soon(page, lambda: len(gateway.titles) == 1)
    [request] = gateway.titles
    assert {"previous_response_id": "resp_1", "when_idle": True, "store": False}.items() <= request.items()
    answer_title(gateway, '**Title: "The taste of tea."**\n\nMore')
    await expect(conversations(page)).to_have_text(["The taste of tea"])
    await page.reload()
    await expect(conversations(page)).to_have_text(["The taste of tea"])
    await ended(await ask(page, "And now?"))
    await page.wait_for_timeout(2_000)
    assert len(gateway.titles) == 1, "only the first answer is followed by a title"


async def test_an_unusable_title_and_one_after_a_rename_change_nothing(open_page: OpenPage) -> None:
    gateway = saying("Hot.")
    page = await open_page(gateway, before=use_titles)
    await ended(await ask(page, "What is tea like?"))
    await expect_soon(page, lambda: len(gateway.titles) == 1)
    answer_title(gateway, "x" * 200)
    await page.get_by_test_id("regenerate").click()
    await expect_soon(page, lambda: len(gateway.titles) == 2)
    await expect(conversations(page)).to_have_text(["What is tea like?"])
    await conversations(page).get_by_test_id("rename").click()
    await page.keyboard.type("Mine")
    await page.keyboard.press("Enter")
    answer_title(gateway, "The model's")
    await page.wait_for_timeout(500)
    await expect(conversations(page)).to_have_text(["Mine"])
