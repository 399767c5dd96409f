"""Which tokens a grammar lets follow, without asking it about the whole vocabulary each time.

A token is drawn first and only tested. When it is rejected, tokens are tested from the likeliest on until enough of
them fit: looking at all 152 000 takes llama.cpp's grammar 9 to 17 ms. A token fits only if its first byte does, and
nearly every byte is a token of its own; these are tested first, and then only tokens that begin with one that fits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.candidates import STEPS, Ids, Logits, largest
from engine.errors import GrammarError, SamplingError
from engine.llama import GrammarState, Vocabulary
from engine.messages import Grammar

SLICE: Final = 2048
"""Tokens that the grammar looks at between two looks at the clock."""
SECONDS: Final = 2.0
"""What one request's grammar may cost beside its tokens: all streams of its engine wait meanwhile."""
SECONDS_A_TOKEN: Final = 0.03
"""And with each token, about a step of the users' model."""


class Lexicon:
    """A vocabulary by the first bytes of its tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Look at every token once: a third of a second for 152 000."""
        size = vocabulary.size
        pieces = [vocabulary.bare_piece(token) for token in range(size)]
        first = np.fromiter((piece[0] if piece else 256 for piece in pieces), np.int16, size)
        order = np.argsort(first, kind="stable")
        bounds = np.searchsorted(first[order], np.arange(257))
        self.by_first = [order[bounds[byte] : bounds[byte + 1]] for byte in range(256)]
        """Tokens by their first byte; those that stand for no text, as control tokens do, are not among them."""
        single = {piece[0]: token for token, piece in enumerate(pieces) if len(piece) == 1}
        self.bytes = np.fromiter(single, np.intp)
        """Bytes that are tokens of their own, and …"""
        self.singles = np.fromiter(single.values(), np.intp)
        """… those tokens."""
        self.always = np.concatenate(
            [np.fromiter((t for t in range(size) if vocabulary.ends_generation(t)), np.intp)]
            + [self.by_first[byte] for byte in range(256) if byte not in single]
        )
        """Tokens that no single byte speaks for: those that end an answer, above all."""


class Grammars:
    """Compiles grammars for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, *, clock: Callable[[], float] = time.thread_time) -> None:
        """Nothing is built before it is needed. `clock` counts seconds of work, not of waiting for a processor."""
        self.vocabulary = vocabulary
        self.clock = clock

    @functools.cached_property
    def lexicon(self) -> Lexicon:
        """Built when a grammar first rejects a token."""
        return Lexicon(self.vocabulary)

    def constraint(self, grammar: Grammar | None) -> Constraint | None:
        """A new answer's. Raises GrammarError."""
        return None if grammar is None else Constraint(self, grammar)


class Constraint:
    """One answer under a grammar, from its beginning or from where its trigger ends."""

    def __init__(self, grammars: Grammars, grammar: Grammar) -> None:
        """Compile. Raises GrammarError."""
        self._grammars = grammars
        self._vocabulary = grammars.vocabulary
        self._trigger = grammar.trigger.encode()
        self._tail = b""
        self._active = not self._trigger
        self._budget = SECONDS
        self._state = GrammarState(self._vocabulary, grammar.text)

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        return not self._active or (self._means_something(token) and bool(self._fits(np.array([token]))[0]))

    def candidates(self, logits: Logits, enough: int) -> Ids:
        """The tokens that fit: all, or with `enough` at least so many of the likeliest. Raises SamplingError."""
        plausible = self._plausible()
        for count in (*STEPS, len(plausible)) if enough else (len(plausible),):
            near = plausible[largest(logits[plausible], count)]
            fitting = near[self._fits(near)]
            if count >= len(plausible) or len(fitting) >= enough > 0:
                break
        if not len(fitting):
            raise SamplingError("no token fits the grammar")
        return fitting

    def accept(self, token: int) -> None:
        """Go on by a token that it allows."""
        if self._active:
            self._budget += SECONDS_A_TOKEN
            started = self._grammars.clock()
            self._state.accept(token)
            self._spend(started)
        elif self._trigger:
            self._watch(self._vocabulary.piece(token))

    def close(self) -> None:
        """Free the grammar."""
        self._state.close()

    def _means_something(self, token: int) -> bool:
        # The grammar would take a control token for the characters of its name, which the answer does not show.
        return not self._vocabulary.is_control(token) or self._vocabulary.ends_generation(token)

    def _plausible(self) -> Ids:
        lexicon = self._grammars.lexicon
        heads = lexicon.bytes[self._fits(lexicon.singles)]
        return np.concatenate([lexicon.always, *(lexicon.by_first[byte] for byte in heads)])

    def _fits(self, tokens: Ids) -> NDArray[np.bool_]:
        fits = np.empty(len(tokens), np.bool_)
        for start in range(0, len(tokens), SLICE):
            started = self._grammars.clock()
            fits[start : start + SLICE] = self._state.fits(tokens[start : start + SLICE])
            self._spend(started)
        return fits

    def _spend(self, started: float) -> None:
        self._budget -= self._grammars.clock() - started
        if self._budget < 0:
            raise GrammarError("the schema costs too much time to follow; make it simpler")

    def _watch(self, piece: bytes) -> None:
        """Look for the trigger in what the model says, and go by the grammar after it."""
        text = self._tail + piece
        _, found, after = text.partition(self._trigger)
        if not found:
            self._tail = text[max(0, len(text) - len(self._trigger) + 1) :]
            return
        self._active, self._trigger = True, b""
        # The token that ends the trigger may bring the first characters after it.
        for token in self._vocabulary.tokenize(after.decode(errors="ignore"), special=False):
            if not self._fits(np.array([token]))[0]:
                self._active = False  # the model goes its own way: what it says is text, not a call
                return
            self._state.accept(token)
