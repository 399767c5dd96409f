"""Which sequences run in the next step, and with how many tokens each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engine.cost_model import CostModel, groups, padded, round_seconds, widest
from engine.kv_cache_manager import CachedSequence

ALONE: Final = 0.9
"""Seconds that a step of prompts may take: an abort, or a call for this engine's threads, is heard between two."""
BESIDE: Final = 0.42
"""Seconds that a step of one prompt may take beside answers that people read as they come, or three rounds of these if
that is more: 128 tokens take 3.1 ms each, 32 take 3.6, and eight take 7.

While more than one waits for its first word, a step may take as long as without readers. What comes between two steps
is a round of fewer answers than there are going to be, in the time of a full one: shorter steps, and so more of these,
cost eight conversations about documents 3 % of their tokens a second, and their first words come no sooner.
"""
BRIEF: Final = 0.1
"""Seconds that it may take while somebody leaves for another engine, and hears nothing until it is over."""
ENOUGH: Final = 64
"""Prompt tokens that another prompt joins only as a whole: they are hardly faster by the token with more beside them,
and partly walk each other's cells for nothing."""
LIKE_DECODING: Final = 3
"""Tokens of an answer that are computed again in one step: from 4 rows on, kernels give other low bits
(docs/failover.md)."""
GROUP: Final = 8
"""Kernels take rows in groups of so many."""
WIDE: Final = 32
"""And from 64 rows on of so many: 64 take 3.2 ms each and 80 3.3, 128 take 3.1 and 256 3.0 (stand-in, 2 threads)."""


@dataclass(eq=False)
class Sequence:
    """One request in an engine: the tokens it has, and how many of them are in the cells."""

    request: int
    resident: CachedSequence
    tokens: list[int]
    computed: int
    limit: int
    """Tokens, prompt included, at which it ends."""
    answered: int | None = None
    """Where its answer began, if an engine before this one drew some of it: from there on it is computed as if anew."""
    prompt: int = field(init=False)

    def __post_init__(self) -> None:
        """Remember where the prompt ends."""
        self.prompt = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens not in the cells yet: the prompt's rest, or the one drawn last."""
        return len(self.tokens) - self.computed

    def chunk(self, rows: int) -> int:
        """Of its pending tokens, how many a step of `rows` may take."""
        if self.answered is None or self.computed + rows <= self.answered:
            return min(self.pending, rows)
        if self.computed < self.answered:
            return self.answered - self.computed
        return min(self.pending, rows, LIKE_DECODING)


@dataclass(frozen=True)
class Step:
    """What runs next: each sequence's next so many tokens, and rows of nothing that make the step faster."""

    parts: list[tuple[Sequence, int]]
    padding: int = 0
    round: bool = False
    """Whether it gives every sequence that decodes its next token."""

    @property
    def rows(self) -> int:
        """Tokens that are computed for somebody."""
        return sum(tokens for _, tokens in self.parts)


class Scheduler:
    """Decodes in rounds, in the groups that the plan says; prompts advance by one step between two rounds.

    A step has either prompts or answers in it. To let them share steps gains nothing on a CPU: one token and 31 of a
    prompt take 142 ms together and 16 + 127 apart (stand-in, 2 threads), and apart an answer's arithmetic stays the
    same whoever comes and goes beside it.
    """

    def __init__(self, plan: CostModel) -> None:
        """Start with nothing to do, on one thread."""
        self._plan = plan
        self._prefilling: list[Sequence] = []
        self._decoding: deque[Sequence] = deque()
        self._round: deque[int] = deque()
        self._prompts_next = True
        self._oldest_first = False
        self.threads = 1

    def __len__(self) -> int:
        """Sequences that still run."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def threads(self) -> int:
        """Threads that the next step has."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._threads = threads
        self._times = self._plan.at(threads)
        self._round.clear()

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence take part from the next step on."""
        self._prefilling.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, ended or aborted."""
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        else:
            self._decoding.remove(sequence)
            self._round.clear()

    def prefilled(self, sequence: Sequence) -> None:
        """Its prompt is in the cells: it decodes from here on."""
        self._prefilling.remove(sequence)
        self._decoding.append(sequence)
        self._round.clear()

    def schedule(self, *, brief: bool = False) -> Step:
        """The next step, a `brief` one when somebody waits for its end; without parts when nothing runs."""
        if self._prefilling and not self._round and (self._prompts_next or not self._decoding):
            self._prompts_next = False
            return self._prefill(brief=brief)
        if not self._decoding:
            return Step([])
        self._prompts_next = True
        if not self._round:
            self._round.extend(groups(self._times, len(self._decoding)))
        return self._decode(self._round.popleft())

    def _decode(self, width: int) -> Step:
        group = [self._decoding.popleft() for _ in range(min(width, len(self._decoding)))]
        self._decoding.extend(group)
        padding = padded(self._times, len(group)) - len(group)
        return Step([(sequence, 1) for sequence in group], padding, round=len(group) == len(self._decoding))

    def _prefill(self, *, brief: bool) -> Step:
        parts, rows, room = [], 0, self._room(brief=brief)
        for sequence in self._in_turn():
            tokens = sequence.chunk(room - rows)
            if tokens and (rows < ENOUGH or tokens == sequence.chunk(room)):
                parts.append((sequence, tokens))
                rows += tokens
        return Step(parts)

    def _in_turn(self) -> Iterable[Sequence]:
        """The oldest prompt and the shortest go first by turns, so that neither waits for the other for long."""
        self._oldest_first = not self._oldest_first
        if self._oldest_first:
            return self._prefilling
        return sorted(self._prefilling, key=lambda sequence: sequence.pending)

    def _room(self, *, brief: bool) -> int:
        """Prompt tokens that the next step has room for."""
        budget = ALONE
        if brief:
            budget = BRIEF
        elif self._decoding and len(self._prefilling) == 1:
            budget = min(ALONE, max(BESIDE, 3 * round_seconds(self._times, len(self._decoding))))
        rows = widest(self._times, budget)
        return max(GROUP, rows - rows % _group(rows))


def _group(rows: int) -> int:
    return WIDE if rows >= 2 * WIDE else GROUP
