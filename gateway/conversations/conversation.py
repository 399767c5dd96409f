"""A conversation: its title and other metadata, its draft, and the tree of its turns.

Several devices, also at different gateways, may change a conversation at the same time. Such changes are merged: all
turns stay, and of metadata, draft and head the latest counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

MAX_TURNS: Final = 1_000
"""Maximum turns of one conversation, whose list is stored again with every turn."""
MAX_DRAFT: Final = 32_768
"""Maximum characters of a draft."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A turn of a conversation. Its record also holds the items of the turns before it, unless they were truncated."""

    id: str
    """The response's id."""
    previous: str | None
    """Id of the turn that it continues; None for a first one."""
    start: int
    """Number of the items in its record that earlier turns have added."""
    size: int
    """Number of items that it has added itself; 0 until it has ended."""
    at: int
    """When it began, in milliseconds since the epoch."""
    key: str = ""
    """The client's own name of the turn, by which it recognizes a request that it has repeated."""

    @property
    def end(self) -> int | None:
        """Number of items in its record; None until it has ended."""
        return self.start + self.size if self.size else None

    def body(self) -> dict[str, Any]:
        """Return the turn in the format of the API."""
        return {"id": self.id, "previous_response_id": self.previous, **({"key": self.key} if self.key else {})}


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as it is stored. Times are in milliseconds since the epoch."""

    id: str
    created_at: int
    updated_at: int
    metadata: dict[str, str] = {}
    metadata_at: int = 0
    draft: str = ""
    draft_at: int = 0
    head: str | None = None
    """The turn that the next request continues by default."""
    head_at: int = 0
    entries: list[Entry] = []
    """All turns, oldest first."""

    def find(self, response: str | None) -> Entry | None:
        """Return the turn with this id, or None."""
        return next((entry for entry in self.entries if entry.id == response), None)

    def path(self, response: str | None = None) -> Iterator[Entry]:
        """Yield a turn (default: the head) and those before it, up to the first one."""
        by_id = {entry.id: entry for entry in self.entries}
        entry = by_id.pop(response or self.head or "", None)
        while entry is not None:
            yield entry
            entry = by_id.pop(entry.previous or "", None)

    def leaves(self) -> list[str]:
        """Return the ids of the last turns of all branches, the head first."""
        inner = {entry.previous for entry in self.entries}
        leaves = [entry.id for entry in reversed(self.entries) if entry.id not in inner]
        return ([self.head] if self.head is not None else []) + [leaf for leaf in leaves if leaf != self.head]

    def members(self) -> list[tuple[str, bool]]:
        """Return the ids of all turns, each with whether a later turn's record holds all of its items."""
        ends = {entry.id: entry.end for entry in self.entries}
        covered = {
            entry.previous
            for entry in self.entries
            if entry.previous is not None and entry.size and entry.start == ends.get(entry.previous)
        }
        return [(entry.id, entry.id in covered) for entry in self.entries]

    def with_entry(self, entry: Entry, *, now: int) -> Conversation:
        """Return the conversation with a new turn, which becomes its head, or with a turn that has ended."""
        entries = {other.id: other for other in self.entries}
        changed = replace(self, entries=_ordered({**entries, entry.id: entry}), updated_at=now)
        return changed if entry.id in entries else replace(changed, head=entry.id, head_at=now)

    def merged(self, other: Conversation) -> Conversation:
        """Return the conversation with the changes of both, whichever of the two is `self`."""
        older, newer = sorted((self, other), key=lambda one: (one.metadata_at, sorted(one.metadata.items())))
        drafts = sorted((one.draft_at, one.draft) for one in (self, other))
        heads = sorted((one.head_at, one.head or "") for one in (self, other))
        entries: dict[str, Entry] = {}
        for entry in (*self.entries, *other.entries):
            if entry.id not in entries or entries[entry.id].size < entry.size:
                entries[entry.id] = entry
        return Conversation(
            id=self.id,
            created_at=min(older.created_at, newer.created_at),
            updated_at=max(older.updated_at, newer.updated_at),
            metadata=newer.metadata,
            metadata_at=newer.metadata_at,
            draft_at=drafts[-1][0],
            draft=drafts[-1][1],
            head_at=heads[-1][0],
            head=heads[-1][1] or None,
            entries=_ordered(entries),
        )

    def body(self, *, whole: bool = True) -> dict[str, Any]:
        """Return the conversation in the format of OpenAI's API, with Samovar's own fields.

        In a list (`whole` is False) draft and turns are left out.
        """
        shown: dict[str, Any] = {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at // 1000,
            "updated_at": self.updated_at / 1000,
            "metadata": self.metadata,
            "head": self.head,
        }
        if whole:
            shown["draft"] = self.draft
            shown["turns"] = [entry.body() for entry in self.entries]
        return shown


def _ordered(entries: Mapping[str, Entry]) -> list[Entry]:
    return sorted(entries.values(), key=lambda entry: (entry.at, entry.id))
