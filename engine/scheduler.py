"""Which sequences run in the next step, and with how many tokens each."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from engine.residents import Resident

TURNS_BELOW = 4
"""Fewer decoding sequences than this take turns: a batch of 2 or 3 is slower than they are one by one (facts.md)."""
GROUP = 16
"""Sequences decoded together at most; wider groups gain little more."""
CHUNK = 128
"""Prompt tokens a step when nobody waits for a token: an abort is heard between two steps."""
CHUNK_BESIDE = 32
"""Prompt tokens a step beside streaming answers, whose next token waits that long."""


@dataclass(eq=False)
class Sequence:
    """One request in an engine: the tokens it has, and how many of them are in the cells."""

    request: int
    resident: Resident
    tokens: list[int]
    computed: int
    limit: int
    """Tokens, prompt included, at which it ends."""
    prompt: int = field(init=False)

    def __post_init__(self) -> None:
        """Remember where the prompt ends."""
        self.prompt = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens not in the cells yet: the prompt's rest, or the one drawn last."""
        return len(self.tokens) - self.computed


class Scheduler:
    """Decodes in turns or groups; prompts advance by one chunk between two rounds of decoding."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._prefilling: deque[Sequence] = deque()
        self._decoding: deque[Sequence] = deque()
        self._prefill_next = True

    def __len__(self) -> int:
        """Sequences that still run."""
        return len(self._prefilling) + len(self._decoding)

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence take part from the next step on."""
        self._prefilling.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, ended or aborted."""
        queue = self._prefilling if sequence in self._prefilling else self._decoding
        queue.remove(sequence)

    def schedule(self) -> list[tuple[Sequence, int]]:
        """The next step as (sequence, tokens to compute) pairs; empty when nothing runs."""
        if self._prefilling and (self._prefill_next or not self._decoding):
            self._prefill_next = False
            first = self._prefilling[0]
            chunk = CHUNK_BESIDE if self._decoding else CHUNK
            return [(first, min(first.pending, chunk))]
        self._prefill_next = True
        size = 1 if len(self._decoding) < TURNS_BELOW else GROUP
        group = [self._decoding.popleft() for _ in range(min(size, len(self._decoding)))]
        self._decoding.extend(group)
        return [(sequence, 1) for sequence in group]

    def prefilled(self, sequence: Sequence) -> None:
        """Its prompt is in the cells: it decodes from here on."""
        self._prefilling.remove(sequence)
        self._decoding.append(sequence)
