"""Drafts of the next tokens of an answer, taken from its own text: a step verifies several of them at once.

Answers often repeat what the conversation has: a paragraph that is corrected, a file with one name changed, an id in a
call. If the last tokens occurred before, the tokens that followed there are the draft. Verification does not change the
text: a draft token counts only if the sampler draws it from the logits of the tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

LENGTHS: Final = (8, 4, 2)
"""Numbers of last tokens that are looked up, longest first: a longer match is more often right."""
PRIOR: Final = {8: 0.9, 4: 0.75, 2: 0.5}
"""Assumed probability that a draft token is right if those before it are, by length of the match."""
PRIOR_TOKENS: Final = 4.0
"""Number of tokens that the assumption counts for."""
MEMORY: Final = 0.9
"""Factor on the weight of earlier draft tokens for each new one: about the last ten count."""
RECOVERY: Final = 0.002
"""Share of the way back to the assumption with each token without a draft: a text may begin to repeat itself later."""
MAX_DRAFT: Final = 23
"""Maximum tokens of a draft."""
INDEXED_AT_ONCE: Final = 1024
"""Maximum tokens that are added to an index in one step, which takes 2 ms."""


class Drafts:
    """Drafts of one answer. Holds about 250 bytes for each token of the conversation."""

    def __init__(self, tokens: Sequence[int]) -> None:
        """Read `tokens`, prompt and answer, which grow while the answer is generated."""
        self._tokens = tokens
        self._indexed = 0
        """Number of tokens whose following token is in the index."""
        self._ends: dict[int, dict[int, int]] = {length: {} for length in LENGTHS}
        """By length: the hash of so many tokens, and where they ended last."""
        self._right = {length: PRIOR[length] * PRIOR_TOKENS for length in LENGTHS}
        self._all = dict.fromkeys(LENGTHS, PRIOR_TOKENS)
        self._length = 0
        """The length of the match of the last draft."""

    def propose(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next; none if the last tokens occurred nowhere before."""
        self._index()
        self._length = 0
        tokens = self._tokens
        if self._indexed < len(tokens) - 1:
            return []
        for length in LENGTHS:
            end = self._ends[length].get(hash(tuple(tokens[-length:]))) if len(tokens) > length else None
            if end is not None and tokens[end - length : end] == tokens[-length:]:
                self._length = length
                return self._following(end, min(most, MAX_DRAFT))
        return []

    @property
    def chance(self) -> float:
        """Estimated probability that a token of the last draft is right if those before it are."""
        return self._right[self._length] / self._all[self._length] if self._length else 0.0

    def learn(self, drafted: int, right: int) -> None:
        """Learn that the first `right` of `drafted` tokens were right."""
        if not drafted:
            for length in LENGTHS:
                self._recover(length)
            return
        tested = min(drafted, right + 1)  # those after the first wrong one say nothing
        weight = math.pow(MEMORY, tested)
        self._right[self._length] = self._right[self._length] * weight + right
        self._all[self._length] = self._all[self._length] * weight + tested

    def _recover(self, length: int) -> None:
        self._right[length] += RECOVERY * (PRIOR[length] * PRIOR_TOKENS - self._right[length])
        self._all[length] += RECOVERY * (PRIOR_TOKENS - self._all[length])

    def _following(self, end: int, count: int) -> list[int]:
        """Return `count` tokens after `end`. A passage that runs into the end of the text repeats itself."""
        period = len(self._tokens) - end
        return [self._tokens[end + i % period] for i in range(count)]

    def _index(self) -> None:
        """Add the tokens since the last call. The last token's successor is unknown yet, so no match may end there."""
        end = min(len(self._tokens) - 1, self._indexed + INDEXED_AT_ONCE)
        for length, ends in self._ends.items():
            for last in range(max(self._indexed + 1, length), end + 1):
                ends[hash(tuple(self._tokens[last - length : last]))] = last
        self._indexed = max(self._indexed, end)
