"""Texts of a known number of tokens, for `samovar bench` and the benchmarks."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final

from engine import Vocabulary

WORDS: Final = 4096
"""Maximum number of distinct words, enough that two texts share no prefix."""
_WORD: Final = re.compile(rb" [a-z]{2,9}")


class Texts:
    """Texts without common prefixes, and a `logit_bias` that prevents answers from ending early."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Collect words that are a single token each."""
        self._vocabulary = vocabulary
        self._words = [word for _, word in zip(range(WORDS), self._single_token_words(), strict=False)] or [" a"]
        ends = filter(vocabulary.ends_generation, range(vocabulary.size))
        self.bias = {str(token): -100.0 for token in ends}

    def text(self, tokens: int, source: random.Random) -> str:
        """Return a text of `tokens` tokens, drawn from `source`."""
        words = source.choices(self._words, k=tokens)
        # The first word has no leading space, and may take more than one token.
        while len(words) > 1 and len(self._vocabulary.tokenize("".join(words)[1:], special=False)) > tokens:
            words.pop()
        return "".join(words)[1:]

    def _single_token_words(self) -> Iterator[str]:
        for token in range(self._vocabulary.size):
            piece = self._vocabulary.bare_piece(token)
            if _WORD.fullmatch(piece) and self._vocabulary.tokenize(piece.decode(), special=False) == [token]:
                yield piece.decode()
