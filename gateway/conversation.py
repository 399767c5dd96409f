"""From a request and what came before it to the token ids of its prompt."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from engine import common_prefix
from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.histories import Known
from gateway.prompt import Prompt, TemplateError
from gateway.protocol.items import Item, input_item, messages
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.tools import Format, JsonObject, JsonSchema
from gateway.sessions import Turn
from gateway.wording import Message, dump

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
    public: int = 0
    """Tokens at its beginning that are the operator's alone, whoever asks."""
    ended_by: str = "assistant"
    """Role of the message with which its ids end, once it is answered or encoded."""


class Conversations:
    """Builds contexts of at most `limit` tokens, an answer of at least one token included."""

    def __init__(self, prompt: Prompt, *, limit: int, instructions: str, new_id: Callable[[str], str]) -> None:
        """`instructions` are the operator's own, put before everybody's; `new_id` gives ids by their prefix."""
        self._prompt = prompt
        self._limit = limit
        self._instructions = instructions
        self._new_id = new_id

    def context(
        self, request: ResponseCreate, previous: Previous | None, history: Known | None = None, *, now: int
    ) -> Context:
        """The context of `request` after `previous`, or with what is known of the `history` that it brings along.

        Raises InvalidRequestError or ContextLengthExceededError.
        """
        context = self.build(request, previous, history, now=now)
        if len(context.ids) >= self._limit:
            raise ContextLengthExceededError(
                f"the prompt has {len(context.ids)} tokens, and with at least one of the answer {self._limit} is the "
                'limit; shorten it, or let `truncation: "auto"` drop the oldest turns',
                param=request.places.input,
            )
        return context

    def build(
        self, request: ResponseCreate, previous: Previous | None, history: Known | None = None, *, now: int
    ) -> Context:
        """The same, however long it is. Raises InvalidRequestError."""
        new = [input_item(item, self._new_id) for item in request.items]
        turn, known = previous or (None, None)
        began = turn.began if turn else now
        items = [*(turn.items if turn else []), *new]
        answer = not request.prepares
        try:
            if turn is not None and known is not None and _begins_alike(turn, request):
                ids = known + self._prompt.follow_up(
                    messages(new), date=_date(began), after=turn.ended_by, answer=answer
                )
            elif turn is None and history is not None:
                known = history.ids
                ids = known + self._prompt.follow_up(messages(new)[history.messages :], date=_date(began))
            else:
                known, ids = None, self._whole(request, items, began)
            if len(ids) >= self._limit and request.truncation == "auto":
                known = None
                items, ids = self._truncated(request, items, began)
        except TemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param=request.places.input
            ) from error
        if not ids:
            raise InvalidRequestError("there is nothing to encode", param=request.places.input)
        ended_by = _ended_by(new, turn) if request.prepares else "assistant"
        return Context(ids, items, len(known or ()), began, self.public(ids, began), ended_by)

    def _whole(self, request: ResponseCreate, items: Sequence[Item], began: int) -> list[int]:
        system = "\n\n".join(
            text for text in (self._instructions, request.instructions, _asked(request.format)) if text
        )
        first = [Message(role="system", content=system)] if system else []
        return self._prompt.whole(
            [*first, *messages(items)],
            date=_date(began),
            answer=not request.prepares,
            tools=[tool.shown for tool in request.functions],
        )

    def public(self, ids: Sequence[int], began: int) -> int:
        """Tokens that come from the operator's instructions whatever follows them: what two examples have in common."""
        if not self._instructions:
            return 0
        example = [Message(role="user", content="x")]
        systems = (self._instructions, f"{self._instructions}\n\nx")
        one, other = (
            self._prompt.whole([Message(role="system", content=system), *example], date=_date(began))
            for system in systems
        )
        return common_prefix(one[: common_prefix(one, other)], ids)

    def _truncated(self, request: ResponseCreate, items: list[Item], began: int) -> tuple[list[Item], list[int]]:
        """Drop the oldest turns down to half of the limit at once, so that the next turns can be appended again."""
        starts = [i for i, item in enumerate(items) if item.get("role") == "user"] or [0]
        kept = [item for item in items[: starts[0]] if item.get("role") in ("system", "developer")]

        def fits(start: int) -> bool:
            return len(self._whole(request, [*kept, *items[start:]], began)) <= self._limit // 2

        cut = starts[min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)]
        rest = [*kept, *items[cut:]]
        return rest, self._whole(request, rest, began)


def _begins_alike(turn: Turn, request: ResponseCreate) -> bool:
    """Whether the request's prompt begins as the turn's did: what is told there was told in the same words."""
    before = turn.response
    return (
        turn.instructions == request.instructions
        and before.get("tools", []) == msgspec.to_builtins(request.functions)
        and before.get("text", {}).get("format", {"type": "text"}) == msgspec.to_builtins(request.format)
    )


def _asked(wanted: Format) -> str:
    """What the model is told of the form that its grammar holds it to, so that it knows what to fill in."""
    if isinstance(wanted, JsonSchema):
        return f"Answer with JSON that fits this schema, and nothing else:\n{dump(wanted.schema)}"
    return "Answer with a JSON object, and nothing else." if isinstance(wanted, JsonObject) else ""


def _ended_by(new: Sequence[Item], previous: Turn | None) -> str:
    """Whose message is the last one where nothing is answered."""
    if new:
        return str(messages(new)[-1]["role"])
    return previous.ended_by if previous is not None else "system"


def _date(began: int) -> Callable[[str], str]:
    """The template's clock: it stands still for a conversation, or its first tokens would change at midnight."""
    return lambda pattern: time.strftime(pattern, time.localtime(began))
