"""Storage of one response's turn: while it runs, so that a crash loses little of it, and when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from cache import StoreError
from gateway.conversations.histories import Histories, transcript
from gateway.conversations.prompt_builder import Context
from gateway.conversations.turns import Sessions, Turn
from gateway.conversations.unstored import Unstored
from gateway.errors import StoreUnavailableError
from gateway.protocol.items import has_reasoning
from gateway.protocol.requests import ResponseCreate

STORED_EVERY: Final = 1.0
"""Seconds between two writes of an unfinished answer, so the most of it that a crash of the gateway loses."""


def turn(request: ResponseCreate, context: Context, response: dict[str, Any]) -> Turn:
    """Return the turn of a request, its prompt and its response, in the form in which it is stored."""
    return Turn(
        id=response["id"],
        previous=request.previous_response_id,
        created_at=response["created_at"],
        began=context.began,
        instructions=request.instructions,
        items=[*context.items, *response["output"]],
        input=len(context.items),
        ended_by=context.ended_by,
        thinking=request.thinking,
        response=response,
    )


@dataclass(frozen=True)
class TurnWriter:
    """Stores one turn of `tenant` where its request asks for it."""

    sessions: Sessions
    histories: Histories
    unstored: Unstored
    """The connection's turns with `store: false`."""
    tenant: str
    request: ResponseCreate

    async def run(
        self, text: Callable[[], str], unfinished: Callable[[str], Awaitable[tuple[Turn, list[int] | None]]]
    ) -> None:
        """Store the unfinished turn every STORED_EVERY seconds, if its `text` has changed, until cancelled."""
        stored = None
        while self.request.is_stored:
            current = text()
            if current != stored:
                with suppress(StoreError):  # the final write reports the error
                    await self.sessions.begin(self.tenant, *await unfinished(current))
                stored = current
            await asyncio.sleep(STORED_EVERY)

    async def save(self, turn: Turn, ids: list[int] | None) -> int:
        """Save the ended turn. Raises StoreUnavailableError.

        Returns how many of the user's oldest turns were dropped to make room.
        """
        if self.request.is_ephemeral:
            self.unstored.add(turn, ids)
        elif self.request.is_stored:
            try:
                return await self.sessions.add(self.tenant, turn, ids)
            except StoreError as error:
                raise StoreUnavailableError(f"the conversation cannot be stored: {error}") from error
        elif ids is not None and not has_reasoning(turn.response["output"]):  # later prompts omit it
            known = transcript(self.request, turn.response["output"])
            self.histories.store(self.tenant, self.request, known, ids, turn.id)
        return 0
