"""Responses as turns of conversations: which turn a request continues, and what becomes of the turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from cache import StoreError
from gateway.auth.principal import ANONYMOUS, Principal
from gateway.conversations.continuation import InConversation
from gateway.conversations.conversation import MAX_TURNS, Conversation, Entry
from gateway.conversations.directory import Conversations
from gateway.errors import (
    ConversationNotFoundError,
    ConversationsNeedKeysError,
    InvalidRequestError,
    StoreUnavailableError,
)
from gateway.protocol.requests import ResponseCreate
from gateway.responses.runner import Running

ORPHANS: Final = 64
"""Turns of deleted conversations that are deleted per query."""
RETRY_SECONDS: Final = 5.0
"""Seconds to wait after the disk has failed."""
IDLE_SECONDS: Final = 60.0
"""Seconds between two searches for turns to delete that nobody has announced."""


class ConversationTurns:
    """Adds responses to their conversations, and deletes those of deleted conversations."""

    def __init__(
        self,
        conversations: Conversations,
        find_running: Callable[[str, str], Running | None],
        delete: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        """`find_running` returns a response that has not ended, `delete` deletes one; both take tenant and id."""
        self._conversations = conversations
        self._find_running = find_running
        self._delete = delete
        self._ending: set[asyncio.Task[None]] = set()

    async def resolve(self, request: ResponseCreate, principal: Principal) -> ResponseCreate:
        """Return the request with the response that it continues, if it names a conversation. Raises ApiError."""
        if not isinstance(request, InConversation):
            return request
        conversation = await self.get(principal, request.conversation.id)
        if len(conversation.entries) >= MAX_TURNS and not request.encodes_only:
            raise InvalidRequestError(
                f"conversation: {conversation.id} has {MAX_TURNS} turns; continue in a new one", param="conversation"
            )
        after = request.conversation.after
        if request.previous_response_id is not None:  # the successor of a steered response
            return request
        if after is None:
            return request
        if isinstance(after, str):
            if conversation.find(after) is None:
                raise InvalidRequestError(
                    f"conversation.after: {conversation.id} has no turn {after}", param="conversation.after"
                )
            return replace(request, previous_response_id=after)
        return replace(request, previous_response_id=await self._last(principal, conversation))

    async def get(self, principal: Principal, id_: str) -> Conversation:
        """Return a conversation of the caller. Raises ApiError."""
        check_has_conversations(principal)
        try:
            conversation = await self._conversations.get(principal.tenant, id_)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation cannot be read: {error}") from error
        if conversation is None:
            raise ConversationNotFoundError(id_)
        return conversation

    async def add(self, running: Running) -> None:
        """Add a response that has just started to its conversation. Raises ApiError after ending the response."""
        request = running.request
        if not isinstance(request, InConversation) or request.encodes_only:
            return
        record = running.record
        start = max(0, record.input - len(request.items))
        now, key = self._conversations.now(), request.conversation.key
        entry = Entry(running.id, request.previous_response_id, start, 0, now, key)
        try:
            added = await self._conversations.put_turn(running.principal.tenant, request.conversation.id, entry)
        except StoreError as error:
            running.end()
            raise StoreUnavailableError(f"the conversation cannot be stored: {error}") from error
        if added is None:  # deleted meanwhile, and with it everything that is said in it
            await self._stop(running.principal.tenant, [running.id])
            await self._delete(running.principal.tenant, running.id)
            raise ConversationNotFoundError(request.conversation.id)
        running.entry = entry
        if running.ended:
            self.ended(running)

    def ended(self, running: Running) -> None:
        """Note in its conversation that a response has ended."""
        if running.entry is not None:
            task = asyncio.create_task(self._end(running, running.entry))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Wait until all ended responses are noted."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def delete(self, principal: Principal, id_: str) -> None:
        """Delete a conversation with all of its turns. Raises ApiError or StoreError."""
        conversation = await self.get(principal, id_)
        await self._stop(principal.tenant, [entry.id for entry in conversation.entries])
        turns = await self._conversations.delete(principal.tenant, id_)
        if turns is None:
            raise ConversationNotFoundError(id_)
        ages = {entry.id: age for age, entry in enumerate(conversation.entries)}
        for turn in sorted(turns, key=lambda turn: ages.get(turn, 0), reverse=True):
            await self._delete_turn(principal.tenant, turn)

    async def run(self) -> None:
        """Delete turns whose conversation is gone, until cancelled."""
        orphaned = self._conversations.orphaned
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(orphaned.wait(), IDLE_SECONDS)
            orphaned.clear()
            try:
                while orphans := await self._conversations.orphans(ORPHANS):
                    for tenant, turn in orphans:
                        await self._stop(tenant, [turn])
                        await self._delete_turn(tenant, turn)
            except StoreError:
                await asyncio.sleep(RETRY_SECONDS)
                orphaned.set()

    async def _last(self, principal: Principal, conversation: Conversation) -> str | None:
        """Return the turn to continue: the head, unless its record is lost."""
        if conversation.head and self._find_running(principal.tenant, conversation.head) is not None:
            return conversation.head
        try:
            return await self._conversations.latest_stored(principal.tenant, conversation)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation cannot be read: {error}") from error

    async def _end(self, running: Running, entry: Entry) -> None:
        request = running.request
        assert isinstance(request, InConversation)  # noqa: S101 - it has an entry
        size = len(running.record.items) - entry.start
        with suppress(StoreError):  # the size only saves space
            await self._conversations.put_turn(
                running.principal.tenant, request.conversation.id, replace(entry, size=size)
            )

    async def _stop(self, tenant: str, turns: Sequence[str]) -> None:
        """End those of the turns that are still running, so that they are not stored again."""
        running = [found for turn in turns if (found := self._find_running(tenant, turn)) is not None]
        for one in running:
            one.end()
        if running:
            await asyncio.wait({one.task for one in running})

    async def _delete_turn(self, tenant: str, turn: str) -> None:
        await self._delete(tenant, turn)
        await self._conversations.release(tenant, turn)


def check_has_conversations(principal: Principal) -> None:
    """Raise ConversationsNeedKeysError if the caller has no key: all callers without keys are one tenant."""
    if principal.tenant == ANONYMOUS:
        raise ConversationsNeedKeysError
