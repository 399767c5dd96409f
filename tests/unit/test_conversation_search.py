"""Search in sealed conversations: words of one character, of any case, in titles, texts and branches, within limits."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cache import Archive, KeyRing
from gateway.conversations import search as search_module
from gateway.conversations.conversation import Entry
from gateway.conversations.directory import Conversations
from gateway.conversations.search import Page, Query, search
from gateway.conversations.turns import Sessions, Turn
from gateway.protocol.items import text_item
from gateway.protocol.response_events import LATER_FIELDS

NUMBERS = itertools.count()


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[Sessions]:
    opened = Sessions(Archive(tmp_path / "conversations.db", KeyRing.new(), ttl=None), "v1")
    yield opened
    opened.close()


@pytest.fixture
def conversations(sessions: Sessions) -> Conversations:
    """Each change is a second after the one before."""
    return Conversations(sessions, clock=lambda: float(next(NUMBERS)))


async def talk(
    sessions: Sessions, conversations: Conversations, title: str, *texts: str, after: list[dict[str, Any]] | None = None
) -> str:
    """A conversation in which each text is a turn that also holds those before; return its id."""
    made = await conversations.create("anna", metadata={"title": title})
    assert made is not None
    items = list(after or [])
    previous = None
    for text in texts:
        number = next(NUMBERS)
        items = [*items, text_item(text, item_id=f"msg_{number}")]
        id_ = f"resp_{number}"
        turn = Turn(
            id=id_,
            previous=previous,
            created_at=1,
            began=1,
            instructions=None,
            items=items,
            input=0,
            response={**LATER_FIELDS, "id": id_, "status": "completed"},
        )
        await conversations.put_turn("anna", made.id, Entry(id_, previous, len(items) - 1, 1, number))
        await sessions.add("anna", turn, [1, 2, 3])
        previous = id_
    return made.id


async def found(conversations: Conversations, text: str, tenant: str = "anna") -> list[str]:
    """Titles of what is found, and the passages with the match marked."""
    page = await conversations.search(tenant, text, limit=100, after=None)
    assert page is not None
    assert not page.has_more
    return [
        f"{result['conversation']['metadata']['title']}: {one['before']}<{one['match']}>{one['after']}"
        for result in page.results
        for one in result["matches"]
    ]


async def test_texts_and_titles_are_found_the_last_changed_first(
    sessions: Sessions, conversations: Conversations
) -> None:
    await talk(sessions, conversations, "早茶", "我想喝茶", "好的")
    await talk(sessions, conversations, "Coffee", "No TEA here", "nor there")
    assert await found(conversations, "茶") == ["早茶: 早<茶>", "早茶: 我想喝<茶>"]
    assert await found(conversations, "tea") == ["Coffee: No <TEA> here"]
    assert await found(conversations, "e") == [
        "Coffee: Coff<e>e",
        "Coffee: nor th<e>re",
        "Coffee: No T<E>A here",
    ]
    assert await found(conversations, "喝咖啡") == []
    assert await found(conversations, "茶", tenant="bert") == []


@pytest.mark.parametrize(
    ("query", "text", "match"),
    [
        ("ÄRGER", "Viel ärger als", "ärger"),
        ("чай", "ЧАЙ и сахар", "ЧАЙ"),
        ("cafe\u0301", "im café", "café"),
        ("café", "im cafe\u0301", "café"),
        ("STRASSE", "die Straße", "strasse"),
    ],
)
async def test_case_and_unicode_form_do_not_matter(
    sessions: Sessions, conversations: Conversations, query: str, text: str, match: str
) -> None:
    await talk(sessions, conversations, "x", text)
    [one] = await found(conversations, query)
    assert f"<{match}>" in one


async def test_a_passage_names_the_turn_that_has_it_although_a_later_record_holds_it(
    sessions: Sessions, conversations: Conversations
) -> None:
    id_ = await talk(sessions, conversations, "x", "alpha", "beta", "gamma")
    conversation = await conversations.get("anna", id_)
    assert conversation is not None
    for entry, text in zip(conversation.entries, ("alpha", "beta", "gamma"), strict=True):
        page = await conversations.search("anna", text, limit=1, after=None)
        assert page is not None
        assert [one["response_id"] for one in page.results[0]["matches"]] == [entry.id]


async def test_results_are_paged_and_a_search_that_takes_too_long_is_continued(
    sessions: Sessions, conversations: Conversations
) -> None:
    ids = [await talk(sessions, conversations, str(number), f"tea {number}") for number in range(5)]
    after, seen = None, []
    while True:
        page = await conversations.search("anna", "tea", limit=2, after=after)
        assert page is not None
        seen += [result["conversation"]["id"] for result in page.results]
        if not page.has_more:
            break
        after = page.last_id
    assert seen == ids[::-1]
    assert await conversations.search("anna", "tea", limit=2, after="conv_1") is None
    times = iter([0.0, *([search_module.SECONDS + 1] * 9)])
    cut = search(sessions.snapshot("anna"), Query("0"), after=None, limit=2, clock=lambda: next(times))
    assert cut == Page([], ids[4], has_more=True)


async def test_what_was_deleted_is_not_found(sessions: Sessions, conversations: Conversations) -> None:
    id_ = await talk(sessions, conversations, "Tea", "tea")
    await conversations.delete("anna", id_)
    assert await found(conversations, "tea") == []
