"""Python wrapper of llama.cpp. No other file calls llama.cpp.

Each class owns one llama.cpp object: a model, a vocabulary, a context with its KV cells. Token ids go in and
out as lists of int; no pointer leaves this file.
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

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from engine import loaderrors
from engine.amx import repacks_weights
from engine.cost_model import BATCH
from engine.dimensions import Dimensions
from engine.errors import DecodeError, ModelLoadError, QuantizeError
from engine.kv import states

_SILENT = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # kept alive: llama.cpp holds the pointer


_ERROR, _CONTINUED = 4, 5  # ggml's log levels; the second marks text that continues the last line


def silence() -> None:
    """Drop llama.cpp's log, which prints details of prompts, and a page of tensors at every load."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))


@contextmanager
def _logging_to(log: Callable[[str], None], *, least: int = 0) -> Iterator[None]:
    """Pass lines of llama.cpp's log with at least the level `least` to `log`, and silence the log afterwards."""
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
    """Return the features that llama.cpp was compiled with, by its own names: `AVX2`, `AVX512_VNNI`, `OPENMP`, …"""
    info: str = llama_cpp.llama_print_system_info().decode()
    pairs = (entry.rpartition(":")[2].partition("=") for entry in info.split("|"))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() not in ("", "0"))


class Vocabulary:
    """Converts text to token ids and back, and returns the special tokens of the model."""

    def __init__(self, model: Model) -> None:
        """Use the vocabulary of `model`, which must stay open."""
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model.pointer)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of `text`. Control tokens are recognized only with `special`."""
        data = text.encode()
        room = len(data) + 8
        while True:
            buffer = (llama_cpp.llama_token * room)()
            n = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, room, False, special)
            if n >= 0:
                return list(buffer[:n])
            room = -n

    def piece(self, token: int) -> bytes:
        """Return the bytes of `token`, which may be part of a character; empty for a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.bare_piece(token)
        return piece

    def bare_piece(self, token: int) -> bytes:
        """Return `piece` without caching it, for a single pass over the vocabulary."""
        while True:
            n = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, False)
            if n >= 0:
                return self._buffer.raw[:n]
            self._buffer = ctypes.create_string_buffer(-n)

    def pieces(self) -> list[bytes]:
        """Return `piece` of all tokens without caching them: 0.25 s for 152 000. Other threads may use `piece`."""
        vocabulary = Vocabulary(self._model)  # its own buffer
        return [vocabulary.bare_piece(token) for token in range(self.size)]

    def longest_piece(self) -> int:
        """Return the maximum bytes of text per token; 0 for a vocabulary type whose tokenizer may drop bytes.

        Visits every token: 0.15 s for 152 000.
        """
        kinds = (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE, llama_cpp.LLAMA_VOCAB_TYPE_RWKV)
        if llama_cpp.llama_vocab_type(self._vocab) not in kinds:
            return 0
        return max(len(self.bare_piece(token)) for token in range(self.size))

    def text(self, token: int) -> str:
        """Return the token's text in the vocabulary, for instance `<|im_end|>`."""
        return (llama_cpp.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    @property
    def edges(self) -> dict[str, str]:
        """The texts of the tokens that begin and end a text, by their names in chat templates."""
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
        """SHA-256 over the text and attributes of all tokens. Equal digests mean equal token ids."""
        digest = hashlib.sha256()
        for token in range(self.size):
            kind = llama_cpp.llama_vocab_get_attr(self._vocab, token)
            digest.update(llama_cpp.llama_vocab_get_text(self._vocab, token) + b"\0%d\n" % kind)
        return digest.hexdigest()

    @functools.cached_property
    def control_texts(self) -> frozenset[str]:
        """The texts that must not come from users: those of control tokens and of tokens that end a generation.

        Visits every token: 0.1 s for 152 000.
        """
        kinds = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        found = (
            token
            for token in range(self.size)
            if llama_cpp.llama_vocab_get_attr(self._vocab, token) & kinds or self.ends_generation(token)
        )
        return frozenset(filter(None, map(self.text, found)))

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token, which represents no text."""
        return bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def ends_generation(self, token: int) -> bool:
        """Whether `token` is an end-of-generation token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))


class Model:
    """A model whose weights are mapped from its GGUF file, so that engines on one machine share the pages."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        """Load `path`, with `vocab_only` without weights. Raises ModelLoadError."""
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
        self.parameters = int(llama_cpp.llama_model_n_params(pointer))
        self.vocabulary = Vocabulary(self)

    def metadata(self, key: str) -> str | None:
        """Return a scalar of the file's metadata as text, or None."""
        buffer = ctypes.create_string_buffer(4096)
        n = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return None if n < 0 else buffer.value.decode(errors="replace")

    @functools.cached_property
    def dimensions(self) -> Dimensions:
        """The sizes in the file's metadata."""
        return Dimensions(self.metadata)

    @property
    def has_blocks(self) -> bool:
        """Whether KV can be split into blocks. The state of a recurrent model depends on all tokens together."""
        return not (llama_cpp.llama_model_is_recurrent(self.pointer) or llama_cpp.llama_model_is_hybrid(self.pointer))

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template in the model file, or None."""
        template = llama_cpp.llama_model_chat_template(self.pointer, None)
        return template.decode(errors="replace") if template else None

    def close(self) -> None:
        """Unmap the weights. Close all contexts first."""
        llama_cpp.llama_model_free(self.pointer)


class _Context:
    """KV cells for up to `sequences` sequences, and the steps that fill them."""

    def __init__(self, model: Model, *, cells: int, sequences: int, threads: int, batch: int, unified: bool) -> None:
        """Allocate all `cells` now. A step has at most `batch` tokens. Raises ModelLoadError."""
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
            raise ModelLoadError(f"no context of {cells} cells can be created: {loaderrors.context_reason(errors)}")
        self._pointer = pointer
        self._memory = llama_cpp.llama_get_memory(pointer)
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self._logits = ctypes.c_float * model.vocabulary.size
        self.cells: int = llama_cpp.llama_n_ctx(pointer)

    def decode(self, entries: Seq[tuple[int, int, int, bool]]) -> None:
        """Run one step over entries of `(token, position, sequence, logits needed)`. Raises DecodeError."""
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
        """Return the logits, one per token of the vocabulary, of entry `index` of the last step. Valid until the next.

        The entry must have requested logits.
        """
        address = ctypes.addressof(llama_cpp.llama_get_logits_ith(self._pointer, index).contents)
        return np.frombuffer(memoryview(self._logits.from_address(address)), np.float32)

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads from the next step on. Takes no time."""
        llama_cpp.llama_set_n_threads(self._pointer, threads, threads)

    def cut(self, sequence: int, length: int) -> bool:
        """Cut `sequence` to its first `length` tokens. Returns False if that is impossible, as for recurrent states."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def length(self, sequence: int) -> int:
        """Return the number of tokens of `sequence` in the cells."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def close(self) -> None:
        """Free the cells."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._pointer)

    def _state(self, sequence: int) -> memoryview:
        """Return the KV of `sequence` in llama.cpp's format. Takes 6 ms for 1 000 tokens."""
        size = llama_cpp.llama_state_seq_get_size(self._pointer, sequence)
        data = np.empty(size, np.uint8)  # not a ctypes array, which would first be filled with zeros
        address = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama_cpp.llama_state_seq_get_data(self._pointer, address, size, sequence)
        return data.data[:written]

    def _restore(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Load `state` into the empty `sequence`. Returns whether llama.cpp read all of it, from `start` to `end`."""
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))  # no copy: llama.cpp only reads it
        taken = llama_cpp.llama_state_seq_set_data(self._pointer, data, len(state), sequence)
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, sequence)
        return bool(taken == len(state) and (first, self.length(sequence)) == (start, end))


class Context(_Context):
    """A context with one pool of cells for all sequences. Sequences share a prefix without a copy of its data."""

    def __init__(self, model: Model, *, cells: int, sequences: int, threads: int) -> None:
        """Allocate `cells` in total. Raises ModelLoadError."""
        self._scratch = sequences  # the number of a scratch sequence, used to save and load parts of other sequences
        super().__init__(model, cells=cells, sequences=sequences + 1, threads=threads, batch=BATCH, unified=True)

    def share(self, source: int, target: int, length: int) -> None:
        """Make `target` a further owner of the first `length` cells of `source`, without copying data."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """Return the KV of the tokens `start` to `end` of `sequence`, in llama.cpp's format.

        llama.cpp only writes whole sequences, so the scratch sequence temporarily shares these cells.
        """
        self._clear_scratch()
        llama_cpp.llama_memory_seq_cp(self._memory, sequence, self._scratch, start, end)
        state = self._state(self._scratch)
        self._clear_scratch()
        return bytes(state)

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append the tokens `start` to `end` to `sequence`, which ends at `start`.

        Returns False, and changes nothing, if the state is incomplete. llama.cpp accepts a state with a gap without an
        error, so the loaded cells are checked before they are shared.
        """
        self._clear_scratch()
        complete = self._restore(state, self._scratch, start, end) and states.cells(state) == end - start
        if complete:
            llama_cpp.llama_memory_seq_cp(self._memory, self._scratch, sequence, start, end)
        self._clear_scratch()
        return complete

    def _clear_scratch(self) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, self._scratch, 0, -1)


class Streams(_Context):
    """A context with separate cells for each sequence, so that attention visits only the cells of the row's sequence.

    A sequence is loaded once, grows, and is removed as a whole. States are interchangeable with those of a `Context`.
    """

    def __init__(self, model: Model, sequences: int, cells: int) -> None:
        """Allocate `cells` per sequence. A step has at most `sequences` tokens. Raises ModelLoadError."""
        self._count = sequences
        total = cells * sequences
        super().__init__(model, cells=total, sequences=sequences, threads=1, batch=sequences, unified=False)

    def save(self, sequence: int, start: int) -> bytes | None:
        """Return the KV of all tokens of `sequence` from `start` on; None for models where only `take` can do this."""
        return states.tail(self._alone(sequence), start)

    def take(self, sequence: int, start: int) -> bytes:
        """Return the KV of all tokens of `sequence` from `start` on, and empty `sequence`."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, 0, start)
        state = self._alone(sequence)
        self.cut(sequence, 0)
        return state

    def _alone(self, sequence: int) -> bytes:
        """Return the state of `sequence` in the format of a context with a single stream."""
        return states.of_one(self._state(sequence), sequence, self._count)

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Load tokens `start` to `end` into the empty `sequence`. Returns False, without a change, if incomplete."""
        complete = self._restore(states.among(state, self._count), sequence, start, end)
        if not complete:
            self.cut(sequence, 0)
        return complete


def quantize(source: Path, target: Path, ftype: int, *, threads: int, log: Callable[[str], None]) -> None:
    """Write the weights of `source` as `ftype` to `target`. `log` gets llama.cpp's log lines. Raises QuantizeError."""
    failure = ""

    def read(line: str) -> None:
        nonlocal failure
        failure = line.partition("failed to quantize:")[2].strip() or failure
        log(line)

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, threads, True
    with _logging_to(read):
        status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        raise QuantizeError(failure or f"llama_model_quantize returned {status}")
