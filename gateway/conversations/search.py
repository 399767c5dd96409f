"""Search in the titles and texts of a user's conversations.

Texts are sealed at rest and there is no index of them: each search opens the records one by one, in a thread, the last
changed conversation first. A search has limits of time and bytes, after which it returns what it has found and where
the next one has to continue.
"""

from __future__ import annotations

import itertools
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cache import Snapshot
from gateway.conversations.conversation import Conversation

SECONDS: Final = 1.0
"""Longest time of one search."""
BYTES: Final = 64 << 20
"""Maximum bytes of the records that one search opens."""
MAX_QUERY: Final = 200
"""Maximum characters of a query."""
PASSAGES: Final = 3
"""Maximum passages of one conversation in the results."""
AROUND: Final = 60
"""Characters of a passage before and after the match."""
_YIELD_RECORDS: Final = 16
"""Records after which the thread lets the event loop run."""


class _Part(msgspec.Struct):
    text: str = ""


class _Item(msgspec.Struct):
    id: str
    content: str | list[_Part] = []


class _Turn(msgspec.Struct):
    items: list[_Item]


class _Record(msgspec.Struct, array_like=True):
    """The part of a stored turn that is searched."""

    turn: _Turn


_CONVERSATION: Final = msgspec.msgpack.Decoder(Conversation)
_RECORD: Final = msgspec.msgpack.Decoder(_Record)


@dataclass(frozen=True)
class Page:
    """The conversations that a search has found."""

    results: list[dict[str, Any]]
    last_id: str | None
    """The last conversation that was searched, after which the next search continues; None if there was none."""
    has_more: bool
    """Whether there are conversations after it."""


class Query:
    """A text to find, whatever its case and Unicode form."""

    def __init__(self, text: str) -> None:
        """Find `text`, which is not empty."""
        self._folded = _folded(text)
        plain = self._folded.encode()
        # Bytes that a record must contain: ASCII is compared in lower case, scripts without case as they are. Other
        # texts may be spelled in several ways, and so may "ss", for which German has a letter.
        self._is_ascii = plain.isascii()
        has_one_form = "ss" not in self._folded if self._is_ascii else self._folded.upper() == self._folded
        self._bytes = plain if has_one_form else b""

    def may_be_in(self, body: bytes) -> bool:
        """Return whether the encoded record `body` may contain the text: most are skipped without decoding."""
        return self._bytes in (body.lower() if self._is_ascii else body)

    def find(self, text: str) -> tuple[str, str, str] | None:
        """Return the first match in `text` with what is before and after it, or None."""
        folded = _folded(text)
        start = folded.find(self._folded)
        if start < 0:
            return None
        if len(folded) == len(text):
            return _passage(text, start, start + len(self._folded))
        return _passage(folded, start, start + len(self._folded))  # folding has moved the characters


def search(
    snapshot: Snapshot,
    query: Query,
    *,
    after: str | None,
    limit: int,
    clock: Callable[[], float] = time.monotonic,
) -> Page | None:
    """Return up to `limit` conversations, after the conversation `after`; None if there is no such. Blocks.

    Raises StoreError.
    """
    with snapshot.open():
        position = None if after is None else snapshot.after(after)
        if after is not None and position is None:
            return None
        budget = _Budget(clock() + SECONDS, clock)
        results: list[dict[str, Any]] = []
        last = None
        for id_, body in snapshot.documents() if position is None else snapshot.documents(position):
            if last is not None and (len(results) >= limit or budget.is_spent):
                return Page(results, last, has_more=True)
            conversation, last = _CONVERSATION.decode(body), id_
            found = list(_passages(snapshot, query, conversation, budget))
            if found:
                results.append({"conversation": conversation.body(whole=False), "matches": found})
        return Page(results, last, has_more=False)


class _Budget:
    """What one search may use."""

    def __init__(self, until: float, clock: Callable[[], float]) -> None:
        self._until = until
        self._clock = clock
        self._bytes = 0
        self._records = 0

    @property
    def is_spent(self) -> bool:
        return self._bytes > BYTES or self._clock() > self._until

    def count(self, size: int) -> None:
        self._bytes += size
        self._records += 1
        if self._records % _YIELD_RECORDS == 0:
            time.sleep(0)


def _passages(
    snapshot: Snapshot, query: Query, conversation: Conversation, budget: _Budget
) -> Iterator[dict[str, Any]]:
    """Yield up to PASSAGES matches in the title and the texts of a conversation, the newest text first."""
    title = query.find(conversation.metadata.get("title", ""))
    if title is not None:
        yield _match(title)
    count, seen = int(title is not None), set[str]()
    for turn, is_redundant in reversed(conversation.members()):
        body = None if is_redundant else snapshot.record(turn)
        if body is None:
            continue
        budget.count(len(body))
        if not query.may_be_in(body):
            continue
        items = _RECORD.decode(body).turn.items
        for number, item in reversed(list(enumerate(items))):
            if item.id in seen:  # of another branch
                continue
            seen.add(item.id)
            found = query.find(_text(item))
            if found is None:
                continue
            yield _match(found, response=_owner(conversation, turn, number), item=item.id)
            count += 1
            if count >= PASSAGES:
                return


def _owner(conversation: Conversation, turn: str, number: int) -> str:
    """Return the turn that added item `number` of the record of `turn`."""
    path = list(conversation.path(turn))
    for entry, before in itertools.pairwise(path):
        if number >= entry.start or entry.start != before.end:
            return entry.id
    return path[-1].id if path else turn


def _match(found: tuple[str, str, str], *, response: str | None = None, item: str | None = None) -> dict[str, Any]:
    before, match, after = found
    return {"before": before, "match": match, "after": after, "response_id": response, "item_id": item}


def _text(item: _Item) -> str:
    return item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _passage(text: str, start: int, end: int) -> tuple[str, str, str]:
    return text[max(0, start - AROUND) : start], text[start:end], text[end : end + AROUND]
