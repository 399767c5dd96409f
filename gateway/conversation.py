"""From a request and what came before it to the token ids of its prompt."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.prompt import Message, Prompt, TemplateError
from gateway.protocol.requests import ResponseCreate
from gateway.sessions import Turn


@dataclass(frozen=True)
class Context:
    """A prompt ready to be computed."""

    ids: list[int]
    messages: list[Message]
    """The conversation without instructions, as far as it was kept."""
    known: int
    """Tokens of it that the model saw before."""
    began: int
    """When the conversation began, seconds of the epoch."""


class Conversations:
    """Builds contexts of at most `limit` tokens, an answer of at least one token included."""

    def __init__(self, prompt: Prompt, *, limit: int, instructions: str) -> None:
        """`instructions` are the operator's own, put before everybody's."""
        self._prompt = prompt
        self._limit = limit
        self._instructions = instructions

    def context(self, request: ResponseCreate, previous: tuple[Turn, list[int] | None] | None, *, now: int) -> Context:
        """The context of `request` after `previous`. Raises InvalidRequestError, ContextLengthExceededError."""
        new = [Message(role=_role(m.role), content=m.text) for m in request.messages]
        turn, known = previous or (None, None)
        began = turn.began if turn else now
        messages = [*(turn.history if turn else []), *new]
        try:
            if turn is not None and known is not None and turn.instructions == request.instructions:
                ids = known + self._prompt.follow_up(new, date=_date(began))
            else:
                known, ids = None, self._whole(request, messages, began)
            if len(ids) >= self._limit and request.truncation == "auto":
                known = None
                messages, ids = self._truncated(request, messages, began)
        except TemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="input"
            ) from error
        if len(ids) >= self._limit:
            raise ContextLengthExceededError(
                f"the prompt has {len(ids)} tokens, and with at least one of the answer {self._limit} is the limit; "
                'shorten it, or let `truncation: "auto"` drop the oldest turns',
                param="input",
            )
        return Context(ids, messages, len(known or ()), began)

    def _whole(self, request: ResponseCreate, messages: Sequence[Message], began: int) -> list[int]:
        system = "\n\n".join(text for text in (self._instructions, request.instructions) if text)
        first = [Message(role="system", content=system)] if system else []
        return self._prompt.whole([*first, *messages], date=_date(began))

    def _truncated(
        self, request: ResponseCreate, messages: list[Message], began: int
    ) -> tuple[list[Message], list[int]]:
        """Drop the oldest turns down to half of the limit at once, so that the next turns can be appended again."""
        kept = [m for m in messages[: _first_user(messages)] if m["role"] == "system"]
        starts = [i for i, m in enumerate(messages) if m["role"] == "user"] or [0]

        def fits(start: int) -> bool:
            return len(self._whole(request, [*kept, *messages[start:]], began)) <= self._limit // 2

        cut = starts[min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)]
        rest = [*kept, *messages[cut:]]
        return rest, self._whole(request, rest, began)


def _first_user(messages: Sequence[Message]) -> int:
    return next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _date(began: int) -> Callable[[str], str]:
    """The template's clock: it stands still for a conversation, or its first tokens would change at midnight."""
    return lambda pattern: time.strftime(pattern, time.localtime(began))
