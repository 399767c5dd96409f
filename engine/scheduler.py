"""Chooses the sequences of the next step, and the number of tokens of each."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engine.cost_model import Kind, StepTimes, groups, padded, round_seconds, seconds, widest
from engine.drafts import Drafts
from engine.kv.manager import CachedSequence
from engine.learning import LearningCostModel

MAX_PREFILL_SECONDS: Final = 0.9
"""Maximum seconds of a prefill step: the engine handles aborts and thread changes only between two steps."""
MAX_SHARED_PREFILL_SECONDS: Final = 0.42
"""Maximum seconds of a prefill step of a single prompt while other sequences decode, or the time of three decode rounds
if that is longer. Wider steps are faster per token: 128 tokens take 3.1 ms each, 32 take 3.6 and 8 take 7.

While several prompts wait for their first token, MAX_PREFILL_SECONDS applies instead. Between two prefill steps runs a
decode round, which has fewer sequences than it will have later, but takes as long as a full round. Shorter prefill
steps mean more such rounds: for eight conversations about documents they cost 3 % of the throughput, and the first
tokens come no sooner.
"""
BRIEF_PREFILL_SECONDS: Final = 0.1
"""Maximum seconds of a prefill step while a request moves to another engine, because its client waits meanwhile."""
JOIN_ROWS: Final = 64
"""Prompt tokens of a step from which a further prompt joins only if it gets as many tokens as in an empty step. More
rows hardly make such a step faster per token, and the attention of each prompt visits the other's cells in vain."""
RECOMPUTE_ROWS: Final = 3
"""Maximum tokens of a response that one step recomputes. With 4 rows or more, kernels round differently, so the logits
would differ in their low bits from those of the first computation."""
GROUP: Final = 8
"""Kernels process rows in groups of this size."""
TRIAL_SHARE: Final = 0.02
"""Maximum share of the time for rounds in widths that are tried because nothing is known about them."""
TRIAL_ROUNDS: Final = 4
"""Rounds of one trial. The first one is not learned from: its sequences may change their places in memory."""
TRIAL_SECONDS: Final = 3.0
"""Maximum seconds of trials that may be saved up, and that are available at the start."""
OTHERS: Final = 0.2
"""Maximum share by which drafts may lengthen a round while some sequences have no draft: these get nothing for it."""
MOST_ROWS: Final = 24
"""Maximum rows of a step with drafts: more are no faster per token (Qwen2.5-class Q4_K_M, 2 threads)."""
CERTAIN: Final = 0.5
"""Chance of a draft token from which on a sequence counts as having a draft."""
WIDE: Final = 32
"""Group size from 64 rows on: per row, 64 take 3.2 ms, 80 3.3, 128 3.1 and 256 3.0 (stand-in model, 2 threads)."""


@dataclass(eq=False)
class Sequence:
    """The tokens of a request, and how many of them are in the cells."""

    request: int
    resident: CachedSequence
    tokens: list[int]
    computed: int
    limit: int
    """Maximum tokens, prompt included. The request ends there."""
    answered: int | None = None
    """Where the response starts in `tokens`, if part of it was generated before the request moved or its engine died.
    From there on, tokens are recomputed in narrow steps, for the same rounding as in decoding."""
    drafts: Drafts | None = None
    """Drafts of the next tokens; None without speculation."""
    prompt: int = field(init=False)
    """Number of tokens at the start: the prompt, and the part of the response generated before."""

    def __post_init__(self) -> None:
        """Set `prompt`."""
        self.prompt = len(self.tokens)

    @property
    def pending(self) -> int:
        """Number of tokens not in the cells yet: the rest of the prompt, or the token sampled last."""
        return len(self.tokens) - self.computed

    def propose(self) -> list[int]:
        """Return a draft of the next tokens, no longer than the limit allows."""
        room = self.limit - len(self.tokens) - 1  # the last token needs no KV
        return [] if self.drafts is None or room < 1 else self.drafts.propose(room)

    @property
    def chance(self) -> float:
        """Estimated probability that a token of the last draft is right if those before it are."""
        return 0.0 if self.drafts is None else self.drafts.chance

    def chunk(self, rows: int) -> int:
        """Return how many pending tokens a step with room for `rows` may compute."""
        if self.answered is None or self.computed + rows <= self.answered:
            return min(self.pending, rows)
        if self.computed < self.answered:
            return self.answered - self.computed
        return min(self.pending, rows, RECOMPUTE_ROWS)


@dataclass(frozen=True)
class Step:
    """One step: a number of tokens of each of some sequences."""

    parts: list[tuple[Sequence, int]]
    padding: int = 0
    """Dummy rows that make the step faster."""
    round: bool = False
    """Whether the step computes the next token of every decoding sequence."""
    kind: Kind = "decode"
    typical: bool = True
    """Whether other steps of this width take as long: not the first ones after a change of widths."""
    trial: bool = False
    """Whether the step's width is tried because nothing is known about it."""
    drafts: dict[int, list[int]] = field(default_factory=dict)
    """By request: the tokens that are computed in addition, as if they had been sampled already."""

    def draft(self, sequence: Sequence) -> list[int]:
        """Return the draft tokens of a sequence."""
        return self.drafts.get(sequence.request, [])

    @property
    def rows(self) -> int:
        """Number of tokens in the step, without padding."""
        return sum(tokens for _, tokens in self.parts) + sum(map(len, self.drafts.values()))

    @property
    def width(self) -> int:
        """Number of rows that are computed: tokens and padding."""
        return self.rows + self.padding


class Scheduler:
    """Decodes in rounds, grouped by the cost model, with one prefill step between two rounds.

    A step contains either prompts or decoding sequences. Mixed steps gain nothing on a CPU: one token and 31 of a
    prompt take 142 ms together, and 16 + 127 ms apart (stand-in model, 2 threads). Apart, the rounding of a response
    also does not depend on the prompts that run at the same time.
    """

    def __init__(self, costs: LearningCostModel) -> None:
        """Start without sequences, on one thread. Decide by `costs`, which learns from the steps."""
        self._costs = costs
        self._prefilling: list[Sequence] = []
        self._decoding: deque[Sequence] = deque()
        self._round: deque[tuple[int, int]] = deque()
        """The steps that are left of the current round: sequences, and rows with padding."""
        self._steps: tuple[tuple[int, int], ...] = ()
        """The steps of the current round."""
        self._typical = False
        self._trial = 0
        """Rounds that are left of the current trial."""
        self._trial_seconds = TRIAL_SECONDS
        """Seconds that trials may take now."""
        self._prompts_next = True
        self._oldest_first = False
        self._proposals: dict[int, list[int]] = {}
        """The drafts that were proposed at the start of the current round, by request."""
        self._spare = math.inf
        """Seconds by which drafts may still lengthen the current round."""
        self.threads = 1

    def __len__(self) -> int:
        """Return the number of running sequences."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def threads(self) -> int:
        """Number of threads of the next step."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._threads = threads
        self._steps = ()
        self._round.clear()

    @property
    def _times(self) -> StepTimes:
        return self._costs.model.at(self._threads)

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence, whose prompt is computed from the next step on."""
        self._prefilling.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove an ended or aborted sequence."""
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        else:
            self._decoding.remove(sequence)
            self._round.clear()

    def prefilled(self, sequence: Sequence) -> None:
        """Move a sequence whose prompt is in the cells to the decoding ones."""
        self._prefilling.remove(sequence)
        self._decoding.append(sequence)
        self._round.clear()

    def schedule(self, *, brief: bool = False) -> Step:
        """Return the next step, without parts if no sequence runs. A `brief` prefill step is shorter."""
        if self._prefilling and not self._round and (self._prompts_next or not self._decoding):
            self._prompts_next = False
            return self._prefill(brief=brief)
        if not self._decoding:
            return Step([])
        self._prompts_next = True
        if not self._round:
            self._begin_round()
        return self._decode(*self._round.popleft())

    def observe(self, step: Step, taken: float) -> None:
        """Learn from a step that took `taken` seconds."""
        self._trial_seconds = min(TRIAL_SECONDS, self._trial_seconds + taken * (TRIAL_SHARE - step.trial))
        if step.typical:
            self._costs.observe(self._threads, step.kind, step.width, taken)

    def _begin_round(self) -> None:
        """Choose the steps of the next round."""
        sequences = len(self._decoding)
        self._trial = max(0, self._trial - 1)
        if self._trial and sum(width for width, _ in self._steps) == sequences:
            steps = self._steps
        else:
            self._trial, steps = 0, _steps(self._times, sequences)
            if self._trial_seconds > 0:
                tried = _steps(self._costs.optimistic.at(self._threads), sequences)
                if tried != steps:
                    self._trial, steps = TRIAL_ROUNDS, tried
        self._typical = steps == self._steps
        self._steps = steps
        self._round.extend(steps)
        self._proposals = {sequence.request: sequence.propose() for sequence in self._decoding}
        everybody = all(sequence.chance >= CERTAIN for sequence in self._decoding)
        self._spare = math.inf if everybody else OTHERS * round_seconds(self._times, sequences)

    def _decode(self, width: int, rows: int) -> Step:
        group = [self._decoding.popleft() for _ in range(min(width, len(self._decoding)))]
        self._decoding.extend(group)
        drafts = {} if self._trial else self._draft(group, rows)
        if drafts:
            width += sum(map(len, drafts.values()))
            rows = padded(self._times, width)
        return Step(
            [(sequence, 1) for sequence in group],
            rows - width,
            round=len(group) == len(self._decoding),
            typical=self._typical,
            trial=self._trial > 0,
            drafts=drafts,
        )

    def _draft(self, group: list[Sequence], rows: int) -> dict[int, list[int]]:
        """Return the drafts with which a step of `group`, else of `rows` rows, yields the most tokens per second."""
        proposals = {s.request: (s.chance, len(self._proposals[s.request])) for s in group}
        likeliest = _likeliest(proposals, MOST_ROWS - len(group))
        plain = seconds(self._times.decode, rows)
        best, count, taken, tokens = len(group) / plain, 0, plain, float(len(group))
        for more, (chance, _) in enumerate(likeliest, 1):
            tokens += chance
            longer = seconds(self._times.decode, padded(self._times, len(group) + more))
            if tokens / longer > best and longer - plain <= self._spare:
                best, count, taken = tokens / longer, more, longer
        self._spare -= taken - plain
        counts = Counter(request for _, request in likeliest[:count])
        return {request: self._proposals[request][:number] for request, number in counts.items()}

    def _prefill(self, *, brief: bool) -> Step:
        parts, rows, room = [], 0, self._room(brief=brief)
        for sequence in self._in_turn():
            tokens = sequence.chunk(room - rows)
            if tokens and (rows < JOIN_ROWS or tokens == sequence.chunk(room)):
                parts.append((sequence, tokens))
                rows += tokens
        return Step(parts, kind="prefill")

    def _in_turn(self) -> Iterable[Sequence]:
        """Return the prompts, alternately oldest or shortest first, so that neither kind waits long for the other."""
        self._oldest_first = not self._oldest_first
        if self._oldest_first:
            return self._prefilling
        return sorted(self._prefilling, key=lambda sequence: sequence.pending)

    def _room(self, *, brief: bool) -> int:
        """Return the maximum number of prompt tokens in the next step."""
        budget = MAX_PREFILL_SECONDS
        if brief:
            budget = BRIEF_PREFILL_SECONDS
        elif self._decoding and len(self._prefilling) == 1:
            rounds = 3 * round_seconds(self._times, len(self._decoding))
            budget = min(MAX_PREFILL_SECONDS, max(MAX_SHARED_PREFILL_SECONDS, rounds))
        rows = widest(self._times, budget)
        return max(GROUP, rows - rows % _group(rows))


def _likeliest(proposals: dict[int, tuple[float, int]], most: int) -> list[tuple[float, int]]:
    """Return the likeliest of all draft tokens, as (probability that it counts, request).

    `proposals` are by request: the chance of a token if those before it are right, and the number of tokens.
    """
    tokens = [
        (chance**position, request)
        for request, (chance, length) in proposals.items()
        for position in range(1, length + 1)
    ]
    return sorted(tokens, reverse=True)[:most]


def _group(rows: int) -> int:
    return WIDE if rows >= 2 * WIDE else GROUP


def _steps(times: StepTimes, sequences: int) -> tuple[tuple[int, int], ...]:
    """Return the fastest steps of a round, each as (sequences, rows with padding)."""
    return tuple((width, padded(times, width)) for width in groups(times, sequences))
