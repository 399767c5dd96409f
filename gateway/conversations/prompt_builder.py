"""Builds the token ids of a prompt from a request and the conversation before it."""

from __future__ import annotations

import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from engine import common_prefix
from gateway.conversations.histories import Known
from gateway.conversations.turns import Turn
from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.prompts.messages import Encode, Encoded, Tokenize
from gateway.protocol.items import Item, has_reasoning, input_item, messages
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.text import TextRequest
from gateway.protocol.tools import OutputConstraint

NO_REFERENCES: Final[Mapping[str, Item]] = MappingProxyType({})
Previous = tuple[Turn, list[int] | None]
"""A turn and the token ids that it ended with; None if they belong to another vocabulary."""


@dataclass(frozen=True)
class Context:
    """A tokenized prompt."""

    ids: list[int]
    items: list[Item]
    """The conversation without instructions, after truncation."""
    known: int
    """Length in tokens of the prefix that the model saw in earlier turns."""
    began: int
    """When the conversation began, in seconds since the epoch."""
    form: OutputConstraint
    """Constraint on the output."""
    public: int = 0
    """Length in tokens of the prefix that contains only the operator's instructions, the same for all users."""
    ended_by: str = "assistant"
    """Role of the last message in the KV after the request: the answer's, or the last encoded message's."""

    @property
    def turns(self) -> int:
        """The number of the user's messages in the prompt."""
        return sum(item.get("role") == "user" for item in self.items)


class PromptEncoder(Protocol):
    """Renders and tokenizes prompts; implemented by the prompt workers."""

    async def encode(self, job: Encode, *, user: str) -> Encoded:
        """Return the prompt of a request of `user`. Raises ApiError."""

    async def tokenize(self, job: Tokenize, *, user: str) -> bytes:
        """Return the ids of a text outside any template. Raises ApiError."""

    async def operator_prefix(self, began: int) -> bytes:
        """Return the ids that start every prompt of conversations that began at `began`. Raises ApiError."""


class PromptBuilder:
    """Builds prompts that fit, with an answer of at least one token, into `limit` tokens."""

    def __init__(self, workers: PromptEncoder, *, limit: int, new_id: Callable[[str], str]) -> None:
        """Create a builder. `workers` render and tokenize; `new_id` returns a new id with a given prefix."""
        self._workers = workers
        self._limit = limit
        self._new_id = new_id

    async def context(
        self,
        request: ResponseCreate,
        previous: Previous | None,
        history: Known | None = None,
        *,
        now: int,
        user: str,
        references: Mapping[str, Item] = NO_REFERENCES,
    ) -> Context:
        """Return the prompt of `request`, which continues the turn `previous` or contains the known `history`.

        `user` is the key of fair scheduling between prompts; `references` are the items that the request refers to, by
        id. Raises ApiError.
        """
        if isinstance(request, TextRequest):
            context = await self._raw(request, now=now, user=user)
        else:
            new = [input_item(item, self._new_id, references) for item in request.items]
            context = await self._build(request, new, previous, history, now=now, user=user, limit=self._limit)
        if len(context.ids) >= self._limit:
            raise ContextLengthExceededError(
                f"the prompt has {len(context.ids)} tokens, but the limit is {self._limit}, with at least one token of "
                'the answer; shorten the prompt, or set `truncation: "auto"` to drop the oldest turns',
                param=request.error_paths.input,
            )
        return context

    async def count(
        self,
        request: ResponseCreate,
        previous: Previous | None,
        *,
        now: int,
        user: str,
        references: Mapping[str, Item] = NO_REFERENCES,
    ) -> int:
        """Return the number of tokens of the request's prompt, even if it exceeds the limit. Raises ApiError."""
        limit = self._limit if request.truncation == "auto" else 0
        new = [input_item(item, self._new_id, references) for item in request.items]
        return len((await self._build(request, new, previous, None, now=now, user=user, limit=limit)).ids)

    async def tokenize(self, text: str, *, user: str, special: bool = False, bos: bool = False) -> list[int]:
        """Return the token ids of `text`; with `special` it may become control tokens, with `bos` BOS comes first.

        Raises ApiError.
        """
        return unpacked(await self._workers.tokenize(Tokenize(text, special, bos), user=user))

    async def public(self, ids: Sequence[int], began: int) -> int:
        """Return how many leading `ids` come from the operator's instructions only. Raises ApiError."""
        return common_prefix(unpacked(await self._workers.operator_prefix(began)), ids)

    async def _raw(self, request: TextRequest, *, now: int, user: str) -> Context:
        """Return a prompt without a template, in which control tokens are recognized."""
        prompt = request.prompt
        ids = await self.tokenize(prompt, user=user, special=True, bos=True) if isinstance(prompt, str) else prompt
        if not ids:
            raise InvalidRequestError("prompt: it is empty; send at least one token", param="prompt")
        return Context(ids, [], 0, now, OutputConstraint())

    async def _build(
        self,
        request: ResponseCreate,
        new: list[Item],
        previous: Previous | None,
        history: Known | None,
        *,
        now: int,
        user: str,
        limit: int,
    ) -> Context:
        turn, known = previous or (None, None)
        began = turn.began if turn else now
        items = [*(turn.items if turn else []), *new]
        encode = _Encoding(self._workers, request, began=began, user=user, limit=limit)
        if turn is not None and known is not None and _has_same_head(turn, request) and not _outdates(new, turn):
            encoded = await encode.follow_up(messages(new, turn.items), after=turn.ended_by)
        elif turn is None and history is not None:
            known = history.ids
            encoded = await encode.follow_up(messages(new)[history.messages :], after="assistant")
        else:
            known, encoded = None, await encode.whole(messages(items))
        ids = [*(known or ()), *unpacked(encoded.ids)]
        if known is not None and len(ids) >= limit > 0 and request.truncation == "auto":
            known, encoded = None, await encode.whole(messages(items))
            ids = unpacked(encoded.ids)
        if not ids:
            raise InvalidRequestError("the prompt is empty; send at least one message", param=request.error_paths.input)
        return Context(
            ids,
            _truncated(items, encoded.turn),
            len(known or ()),
            began,
            encoded.form,
            common_prefix(unpacked(encoded.operator), ids),
            _ended_by(new, turn) if request.encodes_only else "assistant",
        )


class _Encoding:
    """The encoding of one request's messages by the workers."""

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
            answer=not (request.encodes_only or request.continues_text),
            thinking=request.thinking,
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


def _truncated(items: list[Item], turn: int) -> list[Item]:
    """Drop all items before user message number `turn`, except system messages before the first user message."""
    if not turn:
        return items
    starts = [i for i, item in enumerate(items) if item.get("role") == "user"]
    system = [item for item in items[: starts[0]] if item.get("role") in ("system", "developer")]
    return [*system, *items[starts[turn] :]]


def _has_same_head(turn: Turn, request: ResponseCreate) -> bool:
    """Return whether the request has what comes first in the turn's prompt: instructions, tools and format.

    Some templates also state there whether the model reasons.
    """
    before = turn.response
    return (
        turn.instructions == request.instructions
        and turn.thinking == request.thinking
        and before.get("tools", []) == msgspec.to_builtins(request.functions)
        and before.get("text", {}).get("format", {"type": "text"}) == msgspec.to_builtins(request.format)
    )


def _outdates(new: Sequence[Item], turn: Turn) -> bool:
    """Return whether the new items begin another turn after reasoning, which templates then omit from the prompt."""
    return any(item.get("role") == "user" for item in new) and has_reasoning(turn.items)


def _ended_by(new: Sequence[Item], previous: Turn | None) -> str:
    """Return the role of the last message of a prompt that is only encoded."""
    if said := messages(new):
        return str(said[-1]["role"])
    return previous.ended_by if previous is not None else "system"


def unpacked(ids: bytes) -> list[int]:
    """Return token ids as a list."""
    return array.array("i", ids).tolist()
