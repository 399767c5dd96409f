"""One answer as an engine makes it: tokens in, text out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from engine import EngineProcess, Finished, Generate, Grammar, Logprob, Started, Tokens
from gateway.auth.principal import Principal
from gateway.errors import ApiError, EngineUnavailableError, InvalidRequestError
from gateway.protocol.detokenizer import Detokenizer
from gateway.protocol.events import Usage
from gateway.protocol.requests import ResponseCreate
from gateway.responses.failover import Relay
from gateway.responses.preparation import Prepared
from gateway.responses.services import Services
from gateway.scheduling.dispatcher import Placement


class Generation:
    """The tokens of one answer. `on_text` hears its text as it becomes certain."""

    def __init__(
        self,
        services: Services,
        request: ResponseCreate,
        prepared: Prepared,
        principal: Principal,
        on_text: Callable[[str, list[dict[str, Any]]], None],
    ) -> None:
        """Nothing runs before `run`."""
        self.reason = ""
        """Why the engine ended it: stop, length or aborted; empty when none has."""
        self._services = services
        self._tokens = services.model.tokens
        self._user = principal.user
        self._prepared = prepared
        form = prepared.form
        self._request = Generate(
            services.number(),
            prepared.context.ids,
            prepared.limit,
            services.model.sampling(request),
            principal.tenant,
            grammar=None if form.grammar is None else Grammar(form.grammar, form.trigger),
            top_logprobs=request.logprobs,
            public=prepared.context.public,
            stored=not request.forgotten,
        )
        self._on_text = on_text
        self._detokenizer = Detokenizer(self._tokens.piece, request.stops)
        self._ids: list[int] = []
        self._untold: list[dict[str, Any]] = []
        """Log probabilities of tokens whose text is not certain yet."""
        self._cached = 0
        self.fetched = 0
        """Of the prompt's tokens, those whose KV came from the store."""
        self._latest = 0.0
        self._relay: Relay | None = None
        self._aborted = False
        self._whole = False
        """Whether all of its text has come out."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it."""
        return self._detokenizer.stopped

    @property
    def traces(self) -> list[tuple[EngineProcess, int]]:
        """Engines that hold cells of it, and under which numbers."""
        return self._relay.traces if self._relay else []

    @property
    def blame(self) -> float:
        """Engines that it killed, as far as that can be told."""
        return self._relay.blame if self._relay else 0.0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self._prepared.context.ids), self._cached, len(self._ids))

    @property
    def cache(self) -> str:
        """Whether what the model had seen before was computed again: hit, partial or miss."""
        known = self._prepared.context.known
        if known and self._cached >= known - 1:
            return "hit"
        return "partial" if self._cached else "miss"

    async def run(self, placement: Placement) -> None:
        """Generate to the end. Raises EngineError or EngineUnavailableError."""
        services = self._services
        self._relay = Relay(services.pool, services.dispatcher, placement, self._request, services.number)
        if self._aborted:
            self._relay.abort()
        async with aclosing(self._relay.run()) as messages:
            async for message in messages:
                match message:
                    case Started():
                        self._cached, self.fetched = message.cached, message.fetched
                    case Tokens():
                        self._more(message)
                    case Finished():
                        self.reason = message.reason
                        if message.code == "invalid_request":  # a grammar is judged where it is compiled
                            raise InvalidRequestError(message.detail)
                        if message.reason == "failed":
                            raise EngineUnavailableError(f"the engine failed: {message.detail}; try again")
        self._text(self._detokenizer.finish())
        self._whole = True

    def abort(self) -> None:
        """End it within a step; `run` then returns."""
        self._aborted = True
        if self._relay is not None:
            self._relay.abort()

    async def said(self, text: str) -> list[int] | None:
        """Return the ids that stand for `text`, all that the user saw; None when they cannot be known now.

        They are the ids that the model emitted, up to a stop string when one cut it in the middle of a token, and while
        it runs up to what is held back: half a character, or what may begin a stop string.
        """
        if self._whole and not self.stopped:
            return self._ids
        visible, kept = text.encode(), 0
        for i, token in enumerate(self._ids):
            size = len(self._tokens.piece(token))
            if kept + size > len(visible):
                rest = visible[kept:].decode(errors="ignore")
                try:
                    return self._ids[:i] + await self._services.prompt_builder.tokenize(rest, user=self._user)
                except ApiError:
                    return None
            kept += size
        return self._ids

    def _more(self, tokens: Tokens) -> None:
        ids = tokens.ids
        now = time.monotonic()
        if self._ids:
            for _ in ids:
                self._services.metrics.gap.observe((now - self._latest) / len(ids))
        self._latest = now
        self._services.metrics.generated.inc(len(ids))
        self._ids += ids
        self._untold += [self._told(*pair) for pair in zip(ids, tokens.logprobs, strict=False)]
        self._text(self._detokenizer.feed(ids))
        if self._detokenizer.stopped:
            self.abort()

    def _text(self, text: str) -> None:
        if text:
            told, self._untold = self._untold, []
            self._on_text(text, told)

    def _told(self, token: int, logprob: Logprob) -> dict[str, Any]:
        """A token's log probability as the events of docs/api.md carry it."""
        top = [self._entry(other, value) for other, value in logprob.top]
        return {**self._entry(token, logprob.value), "top_logprobs": top}

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        piece = self._tokens.shown(token)
        return {"token": piece.decode(errors="replace"), "logprob": value, "bytes": list(piece)}
