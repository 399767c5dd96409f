"""Output constraints: which tokens a grammar allows next. llguidance compiles the grammars and computes token masks.

A token is drawn first and only tested, which takes microseconds. The mask of all tokens, 20 to 200 µs for JSON, is
computed only when the drawn token is rejected.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from engine.candidates import Ids
from engine.errors import GrammarError
from engine.llama import Vocabulary
from engine.messages import Grammar

SECONDS: Final = 1.0
"""CPU seconds that the masks of one request may take in addition to SECONDS_PER_TOKEN: other streams wait meanwhile."""
SECONDS_PER_TOKEN: Final = 0.03
"""CPU seconds per generated token, about one step of a 0.5 B model."""
MAX_COMPILED: Final = 8
"""Compiled grammars that are cached, so that an agent's next request with the same tools is not compiled again."""
GRAMMAR_STACK: Final = 96 << 20
"""Bytes of stack of a thread that compiles grammars. llguidance recurses at every reference, with up to 10 kB, and the
20 000 values of a request's schemas have room for a chain of 6 666."""
MARK: Final = b"\xff"
"""First byte of a control token in llguidance's vocabulary. No text has this byte, so no grammar matches the token."""
GRAMMAR_LIMITS: Final = LLParserLimits(
    max_items_in_row=48_000,  # an optional property needs 4; a request has at most 20 000 values in its schemas
    step_max_items=200_000,  # about 10 ms per mask
    step_lexer_fuel=200_000,  # about 14 ms per mask
    initial_lexer_fuel=1_000_000,  # about 20 ms per grammar
    max_lexer_states=50_000,  # at most 2 kB each
    max_grammar_size=500_000,
    verbose_errors=False,  # the parser's state would reveal the answer
)
"""Limits on the size of a compiled grammar and on one mask, so that a grammar does not slow other streams."""

T = TypeVar("T")


class Compiler:
    """Compiles grammars for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, *, clock: Callable[[], float] = time.thread_time) -> None:
        """Build llguidance's tokenizer: 0.8 CPU seconds for 152 000 tokens. `clock` counts CPU seconds."""
        self.vocabulary = vocabulary
        self.clock = clock
        self.ends = np.array([t for t in range(vocabulary.size) if vocabulary.ends_generation(t)], np.intp)
        """The end-of-generation tokens."""
        pieces = vocabulary.pieces()
        self.texts = np.fromiter((bool(piece) for piece in pieces), np.bool_, vocabulary.size)
        """Whether each token represents text. A user's grammar may name control tokens, which must not be sampled."""
        tokens = _Tokens(vocabulary, pieces)
        plain = LLTokenizer(
            TokenizerWrapper(tokens),
            n_vocab=vocabulary.size,
            eos_token=[int(end) for end in self.ends] or None,
            slices=[],
        )
        tokens.tokens.clear()  # llguidance has copied them: 10 MB
        # In two calls, since each holds the interpreter lock, and the step loop needs it.
        self._tokenizer = plain.with_slices(LLTokenizer.json_slices())
        self._matcher = functools.lru_cache(MAX_COMPILED)(self._compile)

    def constraint(self, grammar: Grammar) -> Constraint:
        """Return the constraint of a new answer. Raises GrammarError."""
        return Constraint(self, self._matcher(grammar.text).deep_copy(), grammar)

    def _compile(self, text: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=GRAMMAR_LIMITS)
        _check(matcher)
        return matcher


class Constraint:
    """One answer under a grammar."""

    def __init__(self, compiler: Compiler, matcher: LLMatcher, grammar: Grammar) -> None:
        """Start before the first token; `matcher` must not be shared."""
        self._compiler = compiler
        self._vocabulary = compiler.vocabulary
        self._matcher = matcher
        self._controls = frozenset(grammar.controls)
        self._budget = SECONDS

    def allows(self, token: int) -> bool:
        """Return whether `token` may come next. Raises GrammarError if the constraint takes too much time."""
        if self._vocabulary.ends_generation(token):
            return self._timed(self._matcher.is_accepting)
        is_text = bool(self._compiler.texts[token] or token in self._controls)
        return is_text and self._timed(lambda: self._matcher.validate_tokens([token])) == 1

    def allowed(self) -> Ids:
        """Return all tokens that may come next. Raises GrammarError, also if there are none."""
        mask = self._timed(self._matcher.compute_bitmask)
        _check(self._matcher)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=self._vocabulary.size, bitorder="little")
        fits = bits.view(np.bool_)
        fitting = np.flatnonzero(fits & self._compiler.texts)
        controls = [token for token in self._controls if fits[token]]
        if controls:
            fitting = np.concatenate([fitting, np.array(controls, np.intp)])
        if self._matcher.is_accepting():
            fitting = np.concatenate([fitting, self._compiler.ends])
        if not len(fitting):
            raise GrammarError("the grammar or schema allows no text here that this model can write")
        return fitting

    def accept(self, token: int) -> None:
        """Advance by `token`, which must be allowed. Raises GrammarError."""
        if self._vocabulary.ends_generation(token):
            return
        self._budget += SECONDS_PER_TOKEN
        self._timed(lambda: self._matcher.consume_token(token))
        _check(self._matcher)

    def _timed(self, work: Callable[[], T]) -> T:
        started = self._compiler.clock()
        result = work()
        self._budget -= self._compiler.clock() - started
        if self._budget < 0:
            raise GrammarError("the grammar or schema takes too much time per token; make it simpler")
        return result


class _Tokens:
    """A vocabulary in the form that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary, pieces: list[bytes]) -> None:
        self._vocabulary = vocabulary
        self.tokens = [piece or MARK + vocabulary.text(token).encode() for token, piece in enumerate(pieces)]
        self.eos_token_id = next((t for t in range(vocabulary.size) if vocabulary.ends_generation(t)), 0)
        self.bos_token_id = None
        self.special_token_ids: list[int] = []

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, special=False)


def _check(matcher: LLMatcher) -> None:
    """Raise GrammarError if `matcher` rejected its grammar or exceeded a limit."""
    if matcher.is_error():
        reason = matcher.get_error().strip().partition("\n")[0][:200]
        if reason.startswith("NoExtension"):
            reason = "it allows no text here"
        raise GrammarError(f"the grammar or schema is invalid or too complex: {reason}")
