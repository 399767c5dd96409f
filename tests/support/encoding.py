"""Prompts encoded in the test's own process, by the code that prompt workers run."""

from __future__ import annotations

from engine import Model
from gateway.prompts.encoder import Encoder
from gateway.prompts.messages import Encode, Encoded, OperatorPrefix, Refused, Tokenize


class LocalEncoder:
    """Stands where the prompt workers do, without their processes."""

    def __init__(self, model: Model, template: str, instructions: str = "") -> None:
        self._encoder = Encoder(model.vocabulary, template, instructions=instructions)

    async def encode(self, job: Encode, *, user: str) -> Encoded:
        """As the workers do; `user` makes no difference here."""
        assert user
        return self._run(job)

    async def tokenize(self, job: Tokenize, *, user: str) -> bytes:
        """As the workers do."""
        assert user
        return self._run(job).ids

    async def operator_prefix(self, began: int) -> bytes:
        """As the workers do."""
        return self._run(OperatorPrefix(began)).operator

    def _run(self, job: Encode | Tokenize | OperatorPrefix) -> Encoded:
        reply = self._encoder.run(job)
        if isinstance(reply, Refused):
            raise reply.error()
        return reply
