"""Conversations on the page: reload, branches by editing and regenerating, list, rename, delete."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.async_api import expect

from tests.support.browsing import (
    OpenPage,
    PlayedGateway,
    ask,
    conversations,
    count_of,
    ended,
    first_words_shown,
    messages,
    saying,
    short_answers,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ANSWER = "# Tea\n\n- one\n- **two**\n\n```python\nprint(1)\n```\n\n" + "A paragraph about tea. " * 20
HISTORY = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
]


def counting() -> PlayedGateway:
    """A gateway that numbers its answers."""
    return PlayedGateway(lambda gateway, _: gateway.complete(f"Answer {len(gateway.asked)}."))


def long_conversation(length: int) -> str:
    """Return a conversation of so many turns, as the browser stores it."""
    ids = [f"turn{number}" for number in range(length)]
    parents = [None, *ids]
    turns = {
        turn: {"id": turn, "parent": parent, "question": f"Question {turn[4:]}", "answer": ANSWER, "state": "done"}
        | {"at": 1}
        for turn, parent in zip(ids, parents, strict=False)
    }
    chosen = {parent or "": turn for turn, parent in zip(ids, parents, strict=False)}
    return json.dumps({"id": "long", "title": "Long", "changed": 1, "turns": turns, "chosen": chosen})


def text_of(message: Any) -> Any:
    """Return the text element of a message."""
    return message.locator(".message-text")


@pytest.mark.parametrize(
    ("locale", "questions"),
    [
        ("en-US", ["Name three warm drinks.", "Which of them is made in a samovar?"]),
        ("zh-CN", ["请说出三种热饮。", "其中哪一种用茶炊来煮？"]),
    ],
)
async def test_a_conversation_survives_a_reload_and_uses_the_cache(
    open_page: OpenPage, locale: str, questions: list[str]
) -> None:
    page = await open_page(short_answers, locale)
    first = await ask(page, questions[0])
    await ended(first)
    said = await text_of(first).inner_text()
    await page.reload()
    await expect(text_of(messages(page, "user"))).to_have_text(questions[0])
    assert await text_of(messages(page, "assistant")).inner_text() == said
    await expect(conversations(page)).to_have_text([re.compile(re.escape(questions[0]))])
    second = await ask(page, questions[1])
    await ended(second)
    assert await count_of(second, "cached") > 0


async def test_an_answer_interrupted_by_a_reload_continues_after_it(open_page: OpenPage) -> None:
    page = await open_page()
    await ask(page, "Describe a samovar in two sentences.")
    await first_words_shown(page)
    await page.reload()
    await expect(messages(page, "assistant")).to_have_count(1)
    await ended(messages(page, "assistant"))
    await expect(text_of(messages(page, "assistant"))).to_have_text(re.compile(r"\w+ \w+"))


async def test_an_edited_question_creates_a_branch_and_both_branches_remain(open_page: OpenPage) -> None:
    gateway = counting()
    page = await open_page(gateway)
    await ended(await ask(page, "One?"))
    await ended(await ask(page, "Two?"))
    await messages(page, "user").first.hover()
    await messages(page, "user").first.get_by_test_id("edit").click()
    await page.get_by_test_id("editor-text").fill("Uno?")
    await page.get_by_test_id("editor-text").press("Enter")
    await expect(text_of(messages(page, "user"))).to_have_text(["Uno?"])
    await expect(text_of(messages(page, "assistant"))).to_have_text(["Answer 3."])
    assert "previous_response_id" not in gateway.asked[2]
    await expect(page.get_by_test_id("versions")).to_contain_text("2 / 2")
    await page.get_by_test_id("back").first.click()
    await expect(text_of(messages(page, "user"))).to_have_text(["One?", "Two?"])
    await page.reload()
    await expect(text_of(messages(page, "user"))).to_have_text(["One?", "Two?"])
    await page.get_by_test_id("forth").first.click()
    await expect(text_of(messages(page, "user"))).to_have_text(["Uno?"])


async def test_regenerating_creates_a_version_and_follow_ups_continue_the_displayed_one(open_page: OpenPage) -> None:
    gateway = counting()
    page = await open_page(gateway)
    await ended(await ask(page, "One?"))
    await page.get_by_test_id("regenerate").click()
    await expect(text_of(messages(page, "assistant"))).to_have_text(["Answer 2."])
    assert gateway.asked[1]["input"] == "One?"
    await page.get_by_test_id("back").click()
    await expect(text_of(messages(page, "assistant"))).to_have_text(["Answer 1."])
    await expect(page.get_by_test_id("forth")).to_be_focused()
    await ended(await ask(page, "Two?"))
    assert gateway.asked[2]["previous_response_id"] == "resp_1"


async def test_the_real_gateway_continues_an_older_branch(open_page: OpenPage) -> None:
    page = await open_page(short_answers)
    await ended(await ask(page, "Name a warm drink."))
    await page.get_by_test_id("regenerate").click()
    await expect(page.get_by_test_id("versions")).to_contain_text("2 / 2", timeout=60_000)
    await page.get_by_test_id("back").click()
    second = await ask(page, "And a cold one?")
    await ended(second)
    assert await count_of(second, "cached") > 0


async def test_the_whole_history_is_sent_if_the_server_has_lost_it(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if "previous_response_id" in request:
            gateway.refuse("previous_response_not_found")
        else:
            gateway.complete("First." if len(gateway.asked) == 1 else "Second.")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    await ended(await ask(page, "One?"))
    second = await ask(page, "Two?")
    await ended(second)
    await expect(text_of(second)).to_have_text("Second.")
    assert gateway.asked[2]["input"] == HISTORY


async def test_a_failed_turn_is_not_part_of_the_history(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        if len(gateway.asked) == 2:
            gateway.refuse("context_length_exceeded")
        else:
            gateway.complete("Fine.")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    await ended(await ask(page, "One?"))
    await ended(await ask(page, "Two?"), "failed")
    await ended(await ask(page, "Three?"))
    assert gateway.asked[2]["previous_response_id"] == "resp_1"


async def test_conversations_are_listed_renamed_and_deleted_with_undo(open_page: OpenPage) -> None:
    page = await open_page(counting())
    for question in ("Tea?", "Coffee?"):
        await ended(await ask(page, question))
        await page.get_by_test_id("new").click()
    await expect(conversations(page)).to_have_text([re.compile("Coffee"), re.compile("Tea")])
    await conversations(page).nth(1).get_by_test_id("open").click()
    await expect(text_of(messages(page, "user"))).to_have_text(["Tea?"])
    await conversations(page).nth(1).get_by_test_id("rename").click()
    await page.keyboard.type("About tea")
    await page.keyboard.press("Enter")
    await expect(conversations(page)).to_have_text([re.compile("Coffee"), re.compile("About tea")])
    await conversations(page).nth(1).get_by_test_id("remove").click()
    await expect(conversations(page)).to_have_text([re.compile("Coffee")])
    await expect(page.get_by_test_id("message")).to_have_count(0)
    await page.get_by_test_id("undo").click()
    await expect(conversations(page)).to_have_text([re.compile("Coffee"), re.compile("About tea")])
    await page.reload()
    await expect(text_of(messages(page, "user"))).to_have_text(["Tea?"])


async def test_an_answer_continues_while_another_conversation_is_open(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin("Once upon"))
    page = await open_page(gateway)
    await expect(await ask(page, "A story.")).to_contain_text("Once upon")
    await page.get_by_test_id("new").click()
    await expect(conversations(page)).to_have_attribute("data-answering", "true")
    gateway.delta(" a time.")
    gateway.say_of(1, "response.completed", "completed")
    await expect(conversations(page)).to_have_attribute("data-answering", "false")
    await conversations(page).get_by_test_id("open").click()
    await expect(text_of(messages(page, "assistant"))).to_have_text("Once upon a time.")


async def test_a_full_browser_storage_evicts_the_oldest_conversations_and_says_so(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    await ended(await ask(page, "Old?"))
    await page.get_by_test_id("new").click()
    await page.evaluate("try { localStorage.setItem('other', 'x'.repeat(5_242_880 - 3_000)) } catch {}")
    await ended(await ask(page, "y" * 2_500))
    await expect(page.get_by_test_id("toast")).to_contain_text("oldest conversations were deleted")
    await expect(conversations(page)).to_have_text([re.compile("yyy")])
    await page.reload()
    await expect(text_of(messages(page, "assistant"))).to_have_text("Fine.")


async def test_invalid_entries_in_the_browser_storage_are_ignored(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    for number, value in enumerate(["", "{", "null", '{"id": 7}', '{"id": "a", "turns": {}}']):
        await page.evaluate("(entry) => localStorage.setItem(...entry)", [f"samovar.conversation.{number}", value])
    await page.reload()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await expect(conversations(page)).to_have_count(0)
    await ended(await ask(page, "Hi"))


async def test_a_long_conversation_opens_with_its_newest_turns_and_draws_the_others_later(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    await page.evaluate("(data) => localStorage.setItem('samovar.conversation.long', data)", long_conversation(200))
    await page.reload()
    opened = await page.evaluate(
        """() => {
            document.querySelector('[data-testid="open"]').click();
            return [...document.querySelectorAll('[data-role="user"] .message-text')].map((text) => text.textContent);
        }"""
    )
    assert opened == [f"Question {number}" for number in range(188, 200)]
    await expect(messages(page, "user")).to_have_count(200, timeout=30_000)
    assert await text_of(messages(page, "user")).all_inner_texts() == [f"Question {number}" for number in range(200)]
    await expect(messages(page, "user").last).to_be_in_viewport()


async def test_two_windows_show_the_same_conversation(open_page: OpenPage) -> None:
    page = await open_page(counting())
    await ended(await ask(page, "One?"))
    other = await page.context.new_page()
    await other.route_web_socket(re.compile("/v1/responses$"), counting())
    await other.goto(page.url)
    await conversations(other).get_by_test_id("open").click()
    await expect(text_of(messages(other, "assistant"))).to_have_text(["Answer 1."])
    await ended(await ask(page, "Two?"))
    await expect(text_of(messages(other, "user"))).to_have_text(["One?", "Two?"])
    await expect(text_of(messages(other, "assistant"))).to_have_text(["Answer 1.", "Answer 2."])
    await other.close()


async def test_on_a_phone_the_list_covers_the_page_and_closes_with_escape(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."), viewport={"width": 390, "height": 844})
    await expect(page.get_by_test_id("shelf")).to_be_hidden()
    await page.get_by_test_id("toggle").click()
    await expect(page.get_by_test_id("shelf")).to_be_visible()
    await expect(page.get_by_test_id("new")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_test_id("shelf")).to_be_hidden()
    await expect(page.get_by_test_id("toggle")).to_be_focused()


async def test_a_conversation_has_an_address_and_a_title_and_back_leads_to_the_one_before(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."))
    await expect(page).to_have_title("Samovar")
    await ended(await ask(page, "Tea?"))
    await expect(page).to_have_title("Tea? · Samovar")
    tea = page.url
    await page.get_by_test_id("new").click()
    await ended(await ask(page, "Coffee?"))
    assert page.url != tea
    await page.go_back()
    await expect(text_of(messages(page, "user"))).to_have_text(["Tea?"])
    await expect(page).to_have_title("Tea? · Samovar")
    await page.go_forward()
    await expect(text_of(messages(page, "user"))).to_have_text(["Coffee?"])
    other = await page.context.new_page()
    await other.goto(tea)
    await expect(text_of(messages(other, "user"))).to_have_text(["Tea?"])


async def test_back_closes_the_drawer_and_the_keyboard_stays_in_it(open_page: OpenPage) -> None:
    page = await open_page(saying("Fine."), viewport={"width": 390, "height": 844})
    await ended(await ask(page, "Tea?"))
    tea = page.url
    await page.get_by_test_id("toggle").click()
    for _ in range(8):
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.closest('.room')") is None
    await page.go_back()
    await expect(page.get_by_test_id("shelf")).to_be_hidden()
    assert page.url == tea
    await expect(text_of(messages(page, "user"))).to_have_text(["Tea?"])
    await page.get_by_test_id("toggle").click()
    await page.get_by_test_id("new").click()
    await expect(messages(page, "user")).to_have_count(0)
    await page.go_back()
    await expect(text_of(messages(page, "user"))).to_have_text(["Tea?"])
    await expect(page.get_by_test_id("shelf")).to_be_hidden()
