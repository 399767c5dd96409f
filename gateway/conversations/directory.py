"""The conversations of users: created, listed, changed, continued and deleted. Their texts are in stored turns."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from msgspec.structs import replace

from cache import DocumentGoneError, Edit, StoreError
from gateway.conversations.conversation import Conversation, Entry
from gateway.conversations.feed import Deleted, Feed, ListChanged, Subscription, Updated
from gateway.conversations.search import Page, Query, search
from gateway.conversations.turns import Sessions
from gateway.protocol.items import Item

PREFIX: Final = "conv"
SEARCHES: Final = 2
"""Searches at a time; the others wait."""
_DECODER: Final = msgspec.msgpack.Decoder(Conversation)
_ENCODER: Final = msgspec.msgpack.Encoder(order="sorted")


class Conversations:
    """The conversations of all tenants. Methods raise StoreError if the disk fails."""

    def __init__(self, sessions: Sessions, *, clock: Callable[[], float] = time.time) -> None:
        """Store conversations next to the turns of `sessions`; `clock` returns seconds since the epoch."""
        self._documents = sessions.documents
        self._sessions = sessions
        self._clock = clock
        self._searching = asyncio.Semaphore(SEARCHES)
        self.feed = Feed()
        self.orphaned = asyncio.Event()
        """Set when there may be turns whose conversation is gone."""
        self.orphaned.set()
        self._documents.merge = _merge
        self._documents.on_change = self._changed

    async def create(
        self, tenant: str, *, metadata: dict[str, str], id_: str | None = None, created_at: int | None = None
    ) -> Conversation | None:
        """Create a conversation, or return the one with this id; None if that was deleted.

        `created_at` is in milliseconds since the epoch; by default it is now.
        """
        now = self.now()
        created_at = now if created_at is None else min(created_at, now)
        new = Conversation(
            id=id_ or f"{PREFIX}_{secrets.token_hex(16)}",
            created_at=created_at,
            updated_at=created_at,
            metadata=metadata,
            metadata_at=now,
        )
        if id_ is not None:
            known = await self.get(tenant, id_)
            if known is not None:
                return known
        return await self._edit(tenant, new.id, lambda conversation: conversation or new)

    async def get(self, tenant: str, id_: str) -> Conversation | None:
        """Return a conversation, or None."""
        body = await self._documents.get(tenant, id_)
        return None if body is None else _DECODER.decode(body)

    async def page(
        self, tenant: str, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[Conversation], bool] | None:
        """Return up to `limit` conversations by their last change, and whether there are more.

        The page starts after the conversation `after`; None if there is no such.
        """
        bodies = await self._documents.page(tenant, limit=limit + 1, after=after, newest_first=newest_first)
        if bodies is None:
            return None
        return [_DECODER.decode(body) for body in bodies[:limit]], len(bodies) > limit

    async def update(
        self,
        tenant: str,
        id_: str,
        *,
        metadata: dict[str, str] | None = None,
        draft: str | None = None,
        head: str | None = None,
    ) -> Conversation | None:
        """Change what is given; return the conversation, or None if there is none. `head` must be one of its turns."""
        now = self.now()

        def change(conversation: Conversation | None) -> Conversation | None:
            if conversation is None:
                return None
            if metadata is not None and metadata != conversation.metadata:
                conversation = replace(conversation, metadata=metadata, metadata_at=now, updated_at=now)
            if draft is not None and draft != conversation.draft:
                conversation = replace(conversation, draft=draft, draft_at=now)  # drafts do not reorder the list
            if head is not None and head != conversation.head and conversation.find(head) is not None:
                conversation = replace(conversation, head=head, head_at=now)
            return conversation

        return await self._edit(tenant, id_, change)

    async def put_turn(self, tenant: str, id_: str, entry: Entry) -> Conversation | None:
        """Add a turn, which becomes the head, or note that it has ended. Return None if there is no conversation."""
        now = self.now()
        return await self._edit(
            tenant, id_, lambda conversation: None if conversation is None else conversation.with_entry(entry, now=now)
        )

    async def import_turn(self, tenant: str, id_: str, entry: Entry) -> Conversation | None:
        """Add an earlier turn, at whose time the conversation changed. Return None if there is no conversation."""

        def change(conversation: Conversation | None) -> Conversation | None:
            if conversation is None:
                return None
            return conversation.with_entry(entry, now=max(conversation.updated_at, min(entry.at, self.now())))

        return await self._edit(tenant, id_, change)

    async def delete(self, tenant: str, id_: str) -> list[str] | None:
        """Delete a conversation; return its turns, which the caller deletes, or None if there is none."""
        return await self._documents.delete(tenant, id_)

    async def items(self, tenant: str, conversation: Conversation, response: str | None = None) -> list[Item]:
        """Return the items of the path to a turn (default: the head), as far as they are stored, oldest first."""
        found: list[list[Item]] = []
        path = list(conversation.path(response))
        while path:
            entry = path.pop(0)
            stored = await self._sessions.get(tenant, entry.id)
            if stored is None:
                continue
            while path and entry.start == path[0].end:  # this record holds all items of the turn before, too
                entry = path.pop(0)
            found.append(list(stored[0].items[entry.start :]))
        return [item for items in reversed(found) for item in items]

    async def latest_stored(self, tenant: str, conversation: Conversation) -> str | None:
        """Return the id of the head, or of the latest turn before it that is stored; None if none is."""
        for entry in conversation.path():
            if await self._sessions.exists(tenant, entry.id):
                return entry.id
        return None

    async def search(self, tenant: str, text: str, *, limit: int, after: str | None) -> Page | None:
        """Return conversations with `text`, the last changed first; None if there is no conversation `after`."""
        async with self._searching:
            return await asyncio.to_thread(
                search, self._sessions.snapshot(tenant), Query(text), after=after, limit=limit
            )

    def subscribe(self, tenant: str, wake: Callable[[], None]) -> Subscription:
        """Return a subscription to the changes of the tenant's conversations, to be ended by `feed.unsubscribe`."""
        return self.feed.subscribe(tenant, wake)

    async def next_event(self, subscription: Subscription) -> Updated | Deleted | ListChanged | None:
        """Return the next event of a subscription; None if there is none until it wakes its connection."""
        change = subscription.take()
        if not isinstance(change, tuple):
            return change
        id_, gone = change
        body = None
        if not gone:
            with suppress(StoreError):
                body = await self._documents.get(subscription.tenant, id_, refresh=False)
        if body is None:
            return Deleted(conversation_id=id_)
        return Updated(conversation=_DECODER.decode(body).body())

    async def orphans(self, limit: int) -> Sequence[tuple[str, str]]:
        """Return tenants and ids of turns whose conversation is gone."""
        return await self._documents.orphans(limit)

    async def release(self, tenant: str, turn: str) -> None:
        """Forget a deleted turn of a deleted conversation."""
        await self._documents.release(tenant, turn)

    async def _edit(
        self, tenant: str, id_: str, change: Callable[[Conversation | None], Conversation | None]
    ) -> Conversation | None:
        def edit(body: bytes | None) -> Edit | None:
            changed = change(None if body is None else _DECODER.decode(body))
            return None if changed is None else _edit(changed)

        try:
            body = await self._documents.edit(tenant, id_, edit)
        except DocumentGoneError:
            return None
        return None if body is None else _DECODER.decode(body)

    async def _changed(self, tenant: str, id_: str, gone: bool) -> None:
        self.feed.publish(tenant, id_, gone=gone)
        if gone:
            self.orphaned.set()

    def now(self) -> int:
        """Return the current time in milliseconds since the epoch."""
        return int(self._clock() * 1000)


def _edit(conversation: Conversation) -> Edit:
    return Edit(_ENCODER.encode(conversation), conversation.updated_at, conversation.members())


def _merge(ours: bytes | None, theirs: bytes) -> Edit:
    other = _DECODER.decode(theirs)
    return _edit(other if ours is None else _DECODER.decode(ours).merged(other))
