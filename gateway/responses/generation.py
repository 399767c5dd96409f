"""The generation of one answer: tokens from the engine in, text out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from engine import Engine, Finished, Generate, Grammar, Logprob, PromptProgress, Started, Tokens
from gateway.conversations.prompt_builder import Context
from gateway.errors import ApiError, EngineUnavailableError, InvalidRequestError
from gateway.protocol.answer import Answer
from gateway.protocol.detokenizer import Detokenizer, whole_tokens
from gateway.protocol.events import Usage
from gateway.protocol.requests import ResponseCreate
from gateway.responses.cancellation import Cancellation, Cause
from gateway.responses.failover import Relay
from gateway.responses.services import Services
from gateway.responses.timings import Timings
from gateway.scheduling.fair_queue import Ticket
from gateway.scheduling.placement import Demand, Placement


class Generation:
    """Generates one answer.

    `on_text` is called with each piece of text that can no longer change, `on_progress` with the number of computed
    tokens of a prompt that takes several steps.
    """

    def __init__(
        self,
        services: Services,
        request: ResponseCreate,
        context: Context,
        ticket: Ticket,
        cancellation: Cancellation,
        answer: Answer,
        on_text: Callable[[str, list[dict[str, Any]]], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Build the engine's request; `run` starts it. `answer` is what `on_text` fills."""
        self.reason = ""
        """Why the engine ended the answer: stop, length or aborted; empty if it has not."""
        self._services = services
        self._tokens = services.model.tokens
        self._user = ticket.principal.user
        self._context = context
        form = context.form
        engine_request = Generate(
            0,  # numbered for each engine
            context.ids,
            ticket.demand.answer,
            services.model.sampling(request),
            ticket.principal.tenant,
            grammar=None if form.grammar is None else Grammar(form.grammar, form.controls),
            top_logprobs=request.logprobs,
            public=context.public,
            stored=not request.is_ephemeral,
            reproducible=request.is_reproducible,
        )
        self._on_text = on_text
        self._on_progress = on_progress
        self._answer = answer
        self._controls = frozenset(form.controls)
        self._detokenizer = Detokenizer(self._piece, request.stops)
        self._ids: list[int] = []
        self._pending_logprobs: list[dict[str, Any]] = []
        """Log probabilities of tokens whose text is not final yet."""
        self._cached = 0
        self.fetched = 0
        """Number of prompt tokens whose KV came from the store."""
        self._latest = 0.0
        self.timings = Timings()
        self._relay = Relay(services.pool, services.dispatcher, engine_request, cancellation)
        self._cancellation = cancellation
        self._complete = False
        """Whether all text has been passed to `on_text`."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer."""
        return self._detokenizer.stopped

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._detokenizer.stop

    @property
    def traces(self) -> list[tuple[Engine, int]]:
        """Engines that hold KV cells of the request, with its number there."""
        return self._relay.traces

    @property
    def blame(self) -> float:
        """Estimated number of engines that the request crashed."""
        return self._relay.blame

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        thought = self._answer.reasoning.encode()
        reasoning = whole_tokens(map(self._piece, self._ids), thought)[0] if thought else 0
        return Usage(len(self._context.ids), self._cached, len(self._ids), reasoning)

    @property
    def taken(self) -> Demand:
        """What the request has taken of the engines: nothing if it has not reached one."""
        if not self.traces:
            return Demand(0, 0)
        return Demand(len(self._context.ids), len(self._ids), known=self._cached)

    @property
    def cache(self) -> str:
        """How much of the prompt's known prefix came from caches: hit (all), partial or miss (none)."""
        known = self._context.known
        if known and self._cached >= known - 1:
            return "hit"
        return "partial" if self._cached else "miss"

    async def run(self, placement: Placement) -> None:
        """Generate the whole answer. Raises EngineError, InvalidRequestError or EngineUnavailableError."""
        self.timings.place()
        async with aclosing(self._relay.run(placement)) as messages:
            async for message in messages:
                match message:
                    case Started():
                        self._cached, self.fetched = message.cached, message.fetched
                        self.timings.start()
                    case PromptProgress():
                        if not self._ids:  # otherwise the answer has moved, and its beginning is computed again
                            self._on_progress(message.computed)
                    case Tokens():
                        self.timings.advance()
                        self._receive(message)
                    case Finished():
                        self.reason = message.reason
                        if not self._ids:
                            self.timings.advance()
                        if message.code == "invalid_request":  # the engine compiles the grammar, and may reject it
                            raise InvalidRequestError(message.detail)
                        if message.reason == "failed":
                            raise EngineUnavailableError(f"the engine failed: {message.detail}; try again")
        self._emit_text(self._detokenizer.finish())
        self._complete = True

    async def visible_ids(self, text: str) -> list[int] | None:
        """Return the ids of `text`, which is all that the user has seen; None if they cannot be determined now.

        They are the ids that the model generated. A stop string may cut the text in the middle of a token, an
        unfinished character at the end is dropped, and during generation the possible start of a stop string is held
        back; the rest of such a token is tokenized again.
        """
        pieces = [self._piece(token) for token in self._ids]
        visible = text.encode()
        if self._complete and not self.stopped:  # the tokens themselves, since invalid bytes are U+FFFD in the text
            generated = b"".join(pieces)
            visible = generated[: len(generated) - self._detokenizer.unfinished]
        count, rest = whole_tokens(pieces, visible)
        if not rest:
            return self._ids[:count]
        try:
            return self._ids[:count] + await self._services.prompt_builder.tokenize(rest, user=self._user)
        except ApiError:
            return None

    def _piece(self, token: int) -> bytes:
        """Return the text of a token. Control tokens of calls have their names, which the reader of calls looks for."""
        return self._tokens.shown(token) if token in self._controls else self._tokens.piece(token)

    def _receive(self, tokens: Tokens) -> None:
        ids = tokens.ids
        now = time.monotonic()
        if self._ids:
            for _ in ids:
                self._services.metrics.gap.observe((now - self._latest) / len(ids))
        self._latest = now
        self._services.metrics.generated.inc(len(ids))
        self._ids += ids
        self._pending_logprobs += [self._logprob_body(*pair) for pair in zip(ids, tokens.logprobs, strict=False)]
        self._emit_text(self._detokenizer.feed(ids))
        if self._detokenizer.stopped:
            self._cancellation.cancel(Cause.STOP_STRING)

    def _emit_text(self, text: str) -> None:
        if text:
            logprobs, self._pending_logprobs = self._pending_logprobs, []
            self._on_text(text, logprobs)

    def _logprob_body(self, token: int, logprob: Logprob) -> dict[str, Any]:
        """Return a token's log probability in the format of the API's events."""
        top = [self._entry(other, value) for other, value in logprob.top]
        return {**self._entry(token, logprob.value), "top_logprobs": top}

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        piece = self._tokens.shown(token)
        return {"token": piece.decode(errors="replace"), "logprob": value, "bytes": list(piece)}
