"""Everything that the pool and an engine process say to each other.

One struct for each thing that can be said; token ids are the only content. On the wire a message is MessagePack behind
its length as four big-endian bytes. Idea: mini-sglang's `message/`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from cache import CacheConfig, Operation
from engine.cost_model import CostModel
from engine.modelfile import Mark

LENGTH: Final = struct.Struct(">I")
MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes in one message at most; a context of 32 768 ids is under 200 KB, so more is a broken peer."""


class WorkerConfig(msgspec.Struct, frozen=True, tag="configure"):
    """What an engine is: the first thing that it is told. Not an argument of its process, as it may hold secrets."""

    model: str
    """Path of the GGUF file."""
    cells: int
    sequences: int
    plan: CostModel
    cache: CacheConfig | None = None
    build: dict[str, str | int | bool] = {}
    """All that the KV depends on beside the tokens: the model's digest, the package's version, …"""
    mark: Mark | None = None
    """The file's marks when `build` was made of it; None when any file will do."""
    idle_cells: int = 1 << 30
    """Cells that ended requests may keep once they are stored: idle ones slow every step."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn; the fields and meanings of docs/api.md, with no default left open."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int
    logit_bias: dict[int, float] = {}


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must look like: GBNF with the rule `root`, for all that follows `trigger` (empty: for all)."""

    text: str
    trigger: str = ""


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """The natural logarithm of a token's probability in the model's own distribution, and the likeliest ones'."""

    value: float
    top: list[tuple[int, float]]


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Continue `tokens` by at most `max_tokens` (0: only encode them).

    Cells computed for one `scope` are never used for another: a shared prefix would tell by its speed what was said.
    """

    request: int
    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    scope: str
    grammar: Grammar | None = None
    top_logprobs: int | None = None
    """Tell each token's log probability, and those of so many of the likeliest."""
    public: int = 0
    """So many of the first tokens are the operator's: what is computed of them, all scopes may use."""
    stored: bool = True
    """Whether its blocks may leave the engine's memory."""
    generated: int = 0
    """So many of the last tokens are the answer's already, drawn by an engine that had to give it up."""


class Suspend(msgspec.Struct, frozen=True, tag="suspend"):
    """Give a request up for another engine; answered by `Finished`, reason `moved`, once its KV is in the store."""

    request: int


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Stop a request between two steps; answered by `Finished`."""

    request: int


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Give up the cells that ended requests left behind: nobody may come back to them."""

    requests: list[int]


class Discard(msgspec.Struct, frozen=True, tag="discard"):
    """Drop the cells and the queued blocks of a deleted response's `tokens` beyond the first `start`.

    Answered by `Discarded` once no block of them is on its way to the store.
    """

    number: int
    tokens: list[int]
    scope: str
    public: int
    start: int


class SetThreads(msgspec.Struct, frozen=True, tag="set_threads"):
    """Compute with so many threads from the next step on; 0 is a pause. Answered by `ThreadsSet`."""

    threads: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. `cells` is the KV budget; the seconds are parts of the load that only it sees."""

    cells: int
    weights_seconds: float
    context_seconds: float


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model can't be loaded; the process ends after this."""

    reason: str


class ThreadsSet(msgspec.Struct, frozen=True, tag="threads_set"):
    """No step runs with more than `threads` from here on, so what was taken away may be given to another engine."""

    threads: int


class Discarded(msgspec.Struct, frozen=True, tag="discarded"):
    """The answer to the `Discard` of this number."""

    number: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A request begins; `cached` of its prompt's tokens are not computed again, `fetched` of them from the store."""

    request: int
    cached: int
    fetched: int = 0


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """New tokens of one request, in order, never an end-of-generation token; `logprobs` of each where asked for."""

    request: int
    ids: list[int]
    logprobs: list[Logprob] = []


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """A step was made, with `rows` tokens of `sequences` in it, in `seconds`.

    Sent after every step, so that silence while there is work means a hang. `cells` are in use after it.
    """

    rows: int
    sequences: int
    seconds: float
    cells: int


class StoreUsed(msgspec.Struct, frozen=True, tag="store_used"):
    """What the engine did with the store since it last told, and whether that is up."""

    operations: list[Operation]
    up: bool


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The last word on a request. `reason`: stop, length, aborted, moved, or failed.

    When it failed, `detail` says why, and `code` is the name of docs/api.md for it where the engine knows one.
    """

    request: int
    reason: str
    detail: str = ""
    code: str = ""


ToEngine = WorkerConfig | Generate | Abort | Suspend | Forget | Discard | SetThreads
FromEngine = Ready | LoadFailed | ThreadsSet | Discarded | Started | Tokens | Stepped | StoreUsed | Finished

_encoder = msgspec.msgpack.Encoder()
to_engine_decoder: Final = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: Final = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """One message as it goes over the socket pair."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a byte stream back into message bodies."""

    def __init__(self) -> None:
        """Start with nothing received."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies that `data` completes. Raises ValueError on a length over MAX_FRAME."""
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ValueError(f"a message of {length} bytes is over {MAX_FRAME}")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            yield body
