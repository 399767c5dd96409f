"""llama.cpp behind plain Python: the only file that calls it.

Everything here is a thin, owning wrapper: a model, a vocabulary, a context with its KV cells, a sampler chain. Token
ids go in and out as lists of int; no pointer leaves this file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from engine import loaderrors, states
from engine.amx import repacks_weights
from engine.cost_model import BATCH
from engine.dimensions import Dimensions
from engine.errors import DecodeError, GrammarError, ModelLoadError, QuantizeError

_SILENT = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # kept alive: llama.cpp holds the pointer


_ERROR, _CONTINUED = 4, 5  # ggml's log levels; the second is of text that continues the last line


def silence() -> None:
    """Drop llama.cpp's own log, which prints prompts' details and a page of tensors at every load."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))


@contextmanager
def _logging_to(log: Callable[[str], None], *, least: int = 0) -> Iterator[None]:
    """Pass the lines of llama.cpp's log of at least the level `least` to `log`, and silence it afterwards."""
    current = 0

    def write(level: int, text: bytes, _data: int) -> None:
        nonlocal current
        current = current if level == _CONTINUED else level
        if current >= least:
            log(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(write)  # kept alive: llama.cpp holds the pointer
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield
    finally:
        silence()


def build_features() -> frozenset[str]:
    """What llama.cpp was compiled with, in its own names: `AVX2`, `AVX512_VNNI`, `OPENMP`, …"""
    info: str = llama_cpp.llama_print_system_info().decode()
    pairs = (entry.rpartition(":")[2].partition("=") for entry in info.split("|"))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() not in ("", "0"))


class Vocabulary:
    """Text to token ids and back, and what the model's file says of itself."""

    def __init__(self, model: Model) -> None:
        """Borrow `model`'s vocabulary; the model must outlive it."""
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model.pointer)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; only with `special` may it become control tokens."""
        data = text.encode()
        room = len(data) + 8
        while True:
            buffer = (llama_cpp.llama_token * room)()
            n = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, room, False, special)
            if n >= 0:
                return list(buffer[:n])
            room = -n

    def piece(self, token: int) -> bytes:
        """The bytes that `token` stands for; a control token stands for none. May be part of a character."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.bare_piece(token)
        return piece

    def bare_piece(self, token: int) -> bytes:
        """`piece` without keeping it, for one look at the whole vocabulary."""
        while True:
            n = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, False)
            if n >= 0:
                return self._buffer.raw[:n]
            self._buffer = ctypes.create_string_buffer(-n)

    def longest_piece(self) -> int:
        """Return the most bytes of text that one token stands for; 0 where tokenizing may drop bytes.

        Looks at every token: 0.15 s for 152 000.
        """
        kinds = (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE, llama_cpp.LLAMA_VOCAB_TYPE_RWKV)
        if llama_cpp.llama_vocab_type(self._vocab) not in kinds:
            return 0
        return max(len(self.bare_piece(token)) for token in range(self.size))

    def text(self, token: int) -> str:
        """The token as the vocabulary writes it, `<|im_end|>` for instance."""
        return (llama_cpp.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    @property
    def edges(self) -> dict[str, str]:
        """The tokens that begin and end a text, by the names that chat templates have for them."""
        tokens = {
            "bos_token": llama_cpp.llama_vocab_bos(self._vocab),
            "eos_token": llama_cpp.llama_vocab_eos(self._vocab),
        }
        return {name: self.text(token) for name, token in tokens.items() if token >= 0}

    @property
    def leading_bos(self) -> int | None:
        """The token that llama.cpp's tokenizer puts before a prompt (`add_bos_token`), or None."""
        bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        return bos if bos >= 0 and llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all tokens' texts and kinds: token ids mean the same under the same digest."""
        digest = hashlib.sha256()
        for token in range(self.size):
            kind = llama_cpp.llama_vocab_get_attr(self._vocab, token)
            digest.update(llama_cpp.llama_vocab_get_text(self._vocab, token) + b"\0%d\n" % kind)
        return digest.hexdigest()

    def grammar(self, text: str) -> Any:
        """llama.cpp's own grammar sampler for GBNF `text`, or None where it does not take it."""
        return llama_cpp.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")

    def is_control(self, token: int) -> bool:
        """Whether `token` steers the model instead of standing for text."""
        return bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def ends_generation(self, token: int) -> bool:
        """Whether the model says with `token` that its answer is whole."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))


class Model:
    """Weights mapped from a GGUF file, so that engines on one machine share their pages."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        """Load `path`. Raises ModelLoadError."""
        silence()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = repacks_weights()
        errors: list[str] = []
        with _logging_to(errors.append, least=_ERROR):
            pointer = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            raise ModelLoadError(f"{path.name} can't be loaded: {loaderrors.reason(path, errors)}")
        self.pointer = pointer
        self.vocabulary = Vocabulary(self)

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text, or None."""
        buffer = ctypes.create_string_buffer(4096)
        n = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return None if n < 0 else buffer.value.decode(errors="replace")

    @functools.cached_property
    def dimensions(self) -> Dimensions:
        """The sizes that the file's metadata states."""
        return Dimensions(self.metadata)

    @property
    def has_blocks(self) -> bool:
        """Whether its KV can be cut into blocks: a recurrent model's state is one of all tokens."""
        return not (llama_cpp.llama_model_is_recurrent(self.pointer) or llama_cpp.llama_model_is_hybrid(self.pointer))

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's own chat template, or None."""
        template = llama_cpp.llama_model_chat_template(self.pointer, None)
        return template.decode(errors="replace") if template else None

    def close(self) -> None:
        """Unmap the weights; contexts must be closed before."""
        llama_cpp.llama_model_free(self.pointer)


class _Context:
    """KV cells and the steps that fill them, for up to a number of token sequences."""

    def __init__(self, model: Model, *, cells: int, sequences: int, threads: int, batch: int, unified: bool) -> None:
        """Allocate `cells` at once (they are paid for here, not when used). Raises ModelLoadError."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = unified
        params.swa_full = True
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        errors: list[str] = []
        with _logging_to(errors.append, least=_ERROR):
            pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise ModelLoadError(f"no context of {cells} cells could be made: {loaderrors.context_reason(errors)}")
        self._pointer = pointer
        self._memory = llama_cpp.llama_get_memory(pointer)
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self._logits = ctypes.c_float * model.vocabulary.size
        self.cells: int = llama_cpp.llama_n_ctx(pointer)

    def decode(self, entries: Seq[tuple[int, int, int, bool]]) -> None:
        """Run one step over `(token, position, sequence, wants logits)` entries. Raises DecodeError."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        status = llama_cpp.llama_decode(self._pointer, batch)
        if status != 0:
            raise DecodeError(status)

    def logits(self, index: int) -> NDArray[np.float32]:
        """Logits after the last step's entry `index`, which must have wanted them; good until the next step."""
        address = ctypes.addressof(llama_cpp.llama_get_logits_ith(self._pointer, index).contents)
        return np.frombuffer(memoryview(self._logits.from_address(address)), np.float32)

    def set_threads(self, threads: int) -> None:
        """Use `threads` from the next step on; costs nothing."""
        llama_cpp.llama_set_n_threads(self._pointer, threads, threads)

    def cut(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens of `sequence`; False if that cannot be done, as in a recurrent state."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def length(self, sequence: int) -> int:
        """Tokens of `sequence` in the cells."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def close(self) -> None:
        """Free the cells."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._pointer)

    def _state(self, sequence: int) -> memoryview:
        """What llama.cpp writes of `sequence`: 6 ms for 1 000 tokens."""
        size = llama_cpp.llama_state_seq_get_size(self._pointer, sequence)
        data = np.empty(size, np.uint8)  # a ctypes array would be filled with zeros first
        address = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama_cpp.llama_state_seq_get_data(self._pointer, address, size, sequence)
        return data.data[:written]

    def _restore(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Fill the empty `sequence`; whether all was taken and it runs from `start` to `end`."""
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))  # no copy: it is only read
        taken = llama_cpp.llama_state_seq_set_data(self._pointer, data, len(state), sequence)
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, sequence)
        return bool(taken == len(state) and (first, self.length(sequence)) == (start, end))


class Context(_Context):
    """Cells that all sequences share: a prefix is common to several by a copy of its cells' owners, not of its data."""

    def __init__(self, model: Model, *, cells: int, sequences: int, threads: int) -> None:
        """Allocate `cells` in all. Raises ModelLoadError."""
        self._scratch = sequences  # the number of a sequence by which blocks of others are written and read
        super().__init__(model, cells=cells, sequences=sequences + 1, threads=threads, batch=BATCH, unified=True)

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target` own the first `length` cells of `source` too: no data moves."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """The KV of tokens `start` to `end` of `sequence`, as llama.cpp writes it.

        Only whole sequences can be written, so these cells are lent to one that has no others.
        """
        self._clear_scratch()
        llama_cpp.llama_memory_seq_cp(self._memory, sequence, self._scratch, start, end)
        state = self._state(self._scratch)
        self._clear_scratch()
        return bytes(state)

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append tokens `start` to `end` to `sequence`, which ends at `start`; False, with nothing done, if not whole.

        llama.cpp takes a state with a hole without a word, so what it took is looked at before it is used.
        """
        self._clear_scratch()
        whole = self._restore(state, self._scratch, start, end) and states.cells(state) == end - start
        if whole:
            llama_cpp.llama_memory_seq_cp(self._memory, self._scratch, sequence, start, end)
        self._clear_scratch()
        return whole

    def _clear_scratch(self) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, self._scratch, 0, -1)


class Streams(_Context):
    """Cells in equal parts, one for each sequence: a step's attention walks for each row only its own.

    A sequence is filled once, grows, and is taken out as a whole; its state is as a `Context` writes and reads it.
    """

    def __init__(self, model: Model, sequences: int, cells: int) -> None:
        """Allocate `cells` for each of `sequences`, which is also the widest step. Raises ModelLoadError."""
        self._count = sequences
        total = cells * sequences
        super().__init__(model, cells=total, sequences=sequences, threads=1, batch=sequences, unified=False)

    def save(self, sequence: int, start: int) -> bytes | None:
        """The KV of all its tokens from `start` on; None for models that only `take` can do it for."""
        return states.tail(self._alone(sequence), start)

    def take(self, sequence: int, start: int) -> bytes:
        """The same, and with that empty `sequence`."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, 0, start)
        state = self._alone(sequence)
        self.cut(sequence, 0)
        return state

    def _alone(self, sequence: int) -> bytes:
        """Its state as a context of one stream writes it."""
        return states.of_one(self._state(sequence), sequence, self._count)

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Fill the empty `sequence` with tokens `start` to `end`; False, with nothing done, if that is not whole."""
        whole = self._restore(states.among(state, self._count), sequence, start, end)
        if not whole:
            self.cut(sequence, 0)
        return whole


class GrammarState:
    """A compiled GBNF grammar, and how far an answer has come in it."""

    def __init__(self, vocabulary: Vocabulary, text: str) -> None:
        """Compile `text`, whose first rule is `root`. Raises GrammarError."""
        # For an empty text llama.cpp makes a sampler that constrains nothing.
        pointer = vocabulary.grammar(text) if text.strip() else None
        if not pointer:
            raise GrammarError("the grammar of this schema is not one that llama.cpp takes; make it simpler")
        self._pointer = pointer

    def fits(self, tokens: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which of `tokens` may come next."""
        data = np.zeros(len(tokens), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"] = tokens
        pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(pointer, len(tokens), -1, False)
        llama_cpp.llama_sampler_apply(self._pointer, ctypes.byref(array))
        fits: NDArray[np.bool_] = data["logit"] == 0
        return fits

    def accept(self, token: int) -> None:
        """Go on by `token`, which must be one that fits: llama.cpp ends the process for any other."""
        llama_cpp.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        """Free it."""
        llama_cpp.llama_sampler_free(self._pointer)


def quantize(source: Path, target: Path, ftype: int, *, threads: int, log: Callable[[str], None]) -> None:
    """Write the weights of `source` as `ftype` to `target`; `log` hears llama.cpp. Raises QuantizeError."""
    failure = ""

    def hear(line: str) -> None:
        nonlocal failure
        failure = line.partition("failed to quantize:")[2].strip() or failure
        log(line)

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, threads, True
    with _logging_to(hear):
        status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        raise QuantizeError(failure or f"llama_model_quantize returned {status}")
