"""Sampling and stop parameters of requests, in all APIs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(max_length=1024)]
"""A stop string; its length is limited because each piece of an answer is compared with its prefixes."""
Key64 = Annotated[str, Meta(max_length=64)]
Text512 = Annotated[str, Meta(max_length=512)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling and stop parameters, shared by all APIs."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    reproducible: bool | None = None  # whether nothing but the request may influence the text
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    logit_bias: Annotated[dict[int, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    metadata: Annotated[dict[Key64, Text512], Meta(max_length=16)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
