"""From a request and what came before it to the token ids of its prompt."""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from engine import common_prefix
from gateway.conversations.histories import Known
from gateway.conversations.turns import Turn
from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.prompts.messages import Encode, Encoded
from gateway.protocol.items import Item, input_item, messages
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.tools import OutputConstraint

Previous = tuple[Turn, list[int] | None]
"""A turn and the ids that it ended with, where they are still good."""


@dataclass(frozen=True)
class Context:
    """A prompt ready to be computed."""

    ids: list[int]
    items: list[Item]
    """The conversation without instructions, as far as it was kept."""
    known: int
    """Tokens of it that the model saw before."""
    began: int
    """When the conversation began, seconds of the epoch."""
    form: OutputConstraint
    """What its answer must look like."""
    public: int = 0
    """Tokens at its beginning that are the operator's alone, whoever asks."""
    ended_by: str = "assistant"
    """Role of the message with which its ids end, once it is answered or encoded."""


class PromptEncoder(Protocol):
    """Renders and tokenizes: the prompt workers."""

    async def encode(self, job: Encode, *, user: str) -> Encoded:
        """Return the prompt of a request of `user`'s. Raises ApiError."""

    async def tokenize(self, text: str, *, user: str) -> bytes:
        """Return the ids of a text outside of any template. Raises ApiError."""

    async def operator_prefix(self, began: int) -> bytes:
        """Return the ids with which all prompts of conversations that began then start. Raises ApiError."""


class PromptBuilder:
    """Builds contexts of at most `limit` tokens, an answer of at least one token included."""

    def __init__(self, workers: PromptEncoder, *, limit: int, new_id: Callable[[str], str]) -> None:
        """`workers` render and tokenize; `new_id` gives ids by their prefix."""
        self._workers = workers
        self._limit = limit
        self._new_id = new_id

    async def context(
        self, request: ResponseCreate, previous: Previous | None, history: Known | None = None, *, now: int, user: str
    ) -> Context:
        """Return the context of `request` after `previous`, or with what is known of the `history` that it carries.

        `user` is who waits for it, for fairness. Raises ApiError.
        """
        context = await self._build(request, previous, history, now=now, user=user, limit=self._limit)
        if len(context.ids) >= self._limit:
            raise ContextLengthExceededError(
                f"the prompt has {len(context.ids)} tokens, and with at least one of the answer {self._limit} is the "
                'limit; shorten it, or let `truncation: "auto"` drop the oldest turns',
                param=request.error_paths.input,
            )
        return context

    async def count(self, request: ResponseCreate, previous: Previous | None, *, now: int, user: str) -> int:
        """Return the number of tokens of the request's prompt, however long it is. Raises ApiError."""
        limit = self._limit if request.truncation == "auto" else 0
        return len((await self._build(request, previous, None, now=now, user=user, limit=limit)).ids)

    async def tokenize(self, text: str, *, user: str) -> list[int]:
        """Return the ids of a text that was cut out of an answer. Raises ApiError."""
        return _unpacked(await self._workers.tokenize(text, user=user))

    async def public(self, ids: Sequence[int], began: int) -> int:
        """Return how many of `ids` come from the operator's instructions whatever follows them. Raises ApiError."""
        return common_prefix(_unpacked(await self._workers.operator_prefix(began)), ids)

    async def _build(
        self,
        request: ResponseCreate,
        previous: Previous | None,
        history: Known | None,
        *,
        now: int,
        user: str,
        limit: int,
    ) -> Context:
        new = [input_item(item, self._new_id) for item in request.items]
        turn, known = previous or (None, None)
        began = turn.began if turn else now
        items = [*(turn.items if turn else []), *new]
        encode = _Encoding(self._workers, request, began=began, user=user, limit=limit)
        if turn is not None and known is not None and _begins_alike(turn, request):
            encoded = await encode.follow_up(messages(new), after=turn.ended_by)
        elif turn is None and history is not None:
            known = history.ids
            encoded = await encode.follow_up(messages(new)[history.messages :], after="assistant")
        else:
            known, encoded = None, await encode.whole(messages(items))
        ids = [*(known or ()), *_unpacked(encoded.ids)]
        if known is not None and len(ids) >= limit > 0 and request.truncation == "auto":
            known, encoded = None, await encode.whole(messages(items))
            ids = _unpacked(encoded.ids)
        if not ids:
            raise InvalidRequestError("there is nothing to encode", param=request.error_paths.input)
        return Context(
            ids,
            _kept(items, encoded.turn),
            len(known or ()),
            began,
            encoded.form,
            common_prefix(_unpacked(encoded.operator), ids),
            _ended_by(new, turn) if request.encodes_only else "assistant",
        )


class _Encoding:
    """One request's way to the workers."""

    def __init__(self, workers: PromptEncoder, request: ResponseCreate, *, began: int, user: str, limit: int) -> None:
        self._workers = workers
        self._user = user
        self._job = Encode(
            messages=[],
            began=began,
            instructions=request.instructions,
            tools=request.functions,
            choice=request.choice,
            format=request.format,
            error_paths=request.error_paths,
            answer=not request.encodes_only,
            limit=limit,
            truncate=request.truncation == "auto",
        )

    async def whole(self, conversation: list[dict[str, object]]) -> Encoded:
        return await self._encode(conversation, after="")

    async def follow_up(self, added: list[dict[str, object]], *, after: str) -> Encoded:
        return await self._encode(added, after=after)

    async def _encode(self, shown: list[dict[str, object]], *, after: str) -> Encoded:
        return await self._workers.encode(
            msgspec.structs.replace(self._job, messages=shown, after=after), user=self._user
        )


def _kept(items: list[Item], turn: int) -> list[Item]:
    """Drop all before user message number `turn`, but for the system messages before the first one."""
    if not turn:
        return items
    starts = [i for i, item in enumerate(items) if item.get("role") == "user"]
    system = [item for item in items[: starts[0]] if item.get("role") in ("system", "developer")]
    return [*system, *items[starts[turn] :]]


def _begins_alike(turn: Turn, request: ResponseCreate) -> bool:
    """Whether the request's prompt begins as the turn's did: what is told there was told in the same words."""
    before = turn.response
    return (
        turn.instructions == request.instructions
        and before.get("tools", []) == msgspec.to_builtins(request.functions)
        and before.get("text", {}).get("format", {"type": "text"}) == msgspec.to_builtins(request.format)
    )


def _ended_by(new: Sequence[Item], previous: Turn | None) -> str:
    """Whose message is the last one where nothing is answered."""
    if new:
        return str(messages(new)[-1]["role"])
    return previous.ended_by if previous is not None else "system"


def _unpacked(ids: bytes) -> list[int]:
    return array.array("i", ids).tolist()
