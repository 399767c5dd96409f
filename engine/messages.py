"""The messages between the pool and an engine process.

There is one struct per message type, and prompts and responses are token ids. On the wire a message is MessagePack,
preceded by its length as four big-endian bytes. Idea: mini-sglang's `message/`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from cache import CacheConfig, Operation
from engine.cost_model import CostModel, Kind
from engine.learning import LearnedStep
from engine.modelfile import Mark

LENGTH: Final = struct.Struct(">I")
MAX_FRAME: Final = 64 * 1024 * 1024
"""Maximum bytes of one message. A context of 32 768 token ids is under 200 KB, so a longer message is a fault."""


class WorkerConfig(msgspec.Struct, frozen=True, tag="configure"):
    """The configuration of an engine: its first message. Not a command-line argument, because it may hold secrets."""

    model: str
    """Path of the GGUF file."""
    cells: int
    """KV cells of the main context, one per token."""
    sequences: int
    """Maximum number of sequences in the main context."""
    cost_model: CostModel
    cache: CacheConfig | None = None
    build: dict[str, str | int | bool] = {}
    """Everything that KV depends on besides the tokens: the digest of the model, the version of the package, …"""
    mark: Mark | None = None
    """The change marks of the model file when `build` was computed; None to accept any file."""
    idle_cells: int = 1 << 30
    """Maximum cells of ended requests, because idle cells slow every step down."""
    speculation: bool = False
    """Whether steps verify drafts of the next tokens."""
    learned: list[LearnedStep] = []
    """What the gateway has learned about step times until now."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of a request, with the names and meanings of docs/api.md and all defaults filled in."""

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
    """An output constraint: llguidance's JSON of a grammar."""

    text: str
    controls: tuple[int, ...] = ()
    """Control tokens that an answer may contain."""


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """The natural logarithm of a token's probability, in the distribution before bias, penalties and filters."""

    value: float
    top: list[tuple[int, float]]
    """The likeliest tokens as (token id, log probability)."""


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Generate at most `max_tokens` tokens after `tokens` (0: only compute the KV of the prompt).

    Cells computed for one `scope` are never used for another: the speed of a shared prefix would reveal what another
    tenant wrote.
    """

    request: int
    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    scope: str
    grammar: Grammar | None = None
    top_logprobs: int | None = None
    """Number of likeliest tokens whose log probabilities accompany each token's own; None for no log probabilities."""
    public: int = 0
    """Number of leading tokens that are the operator's. All scopes may use their KV."""
    stored: bool = True
    """Whether its KV blocks may be written to the store."""
    reproducible: bool = False
    """Whether nothing but the request may influence its text. Such a request is not `stored`, and does not move."""
    generated: int = 0
    """Number of trailing tokens that were generated before the request moved to this engine or its engine died."""


class Suspend(msgspec.Struct, frozen=True, tag="suspend"):
    """Stop a request that moves to another engine. `Finished`, reason `moved`, follows once its KV is stored."""

    request: int


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Stop a request between two steps. `Finished` follows."""

    request: int


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Drop the cells of ended requests that no later request can continue."""

    requests: list[int]


class Discard(msgspec.Struct, frozen=True, tag="discard"):
    """Drop the cells and queued blocks of a deleted response: of `tokens` after the first `start`.

    `Discarded` follows once no such block is queued for the store.
    """

    number: int
    tokens: list[int]
    scope: str
    public: int
    start: int


class SetThreads(msgspec.Struct, frozen=True, tag="set_threads"):
    """Use `threads` threads from the next step on; 0 pauses the engine. `ThreadsSet` follows."""

    threads: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. `cells` is the KV budget; the seconds are the parts of the load time."""

    cells: int
    weights_seconds: float
    context_seconds: float


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model can't be loaded. The process exits after this message."""

    reason: str


class ThreadsSet(msgspec.Struct, frozen=True, tag="threads_set"):
    """No later step uses more than `threads`, so threads above that may be granted to another engine."""

    threads: int


class Discarded(msgspec.Struct, frozen=True, tag="discarded"):
    """The `Discard` with this number is done."""

    number: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A request is scheduled. `cached` tokens of its prompt are not computed; `fetched` of them are from the store."""

    request: int
    cached: int
    fetched: int = 0


class PromptProgress(msgspec.Struct, frozen=True, tag="prompt_progress"):
    """`computed` tokens of a prompt are in the cells, and more steps are needed for the rest of it."""

    request: int
    computed: int


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """New tokens of one request, in order and without end-of-generation tokens, with `logprobs` if requested."""

    request: int
    ids: list[int]
    logprobs: list[Logprob] = []


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """A step of `rows` tokens of `sequences` sequences took `seconds` and left `cells` cells in use.

    Sent after every step, so that an engine that has work and sends nothing is hung.
    """

    rows: int
    sequences: int
    seconds: float
    cells: int
    threads: int = 1
    kind: Kind = "decode"
    width: int = 0
    """Rows with padding, if the step's seconds are typical of its width, else 0."""
    trial: bool = False
    """Whether its width was tried because nothing was known about it."""
    drafted: int = 0
    """Draft tokens among its rows."""
    accepted: int = 0
    """Draft tokens that were sampled."""


class StoreUsed(msgspec.Struct, frozen=True, tag="store_used"):
    """The engine's store operations since the last such message, and whether the store is up."""

    operations: list[Operation]
    up: bool


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The last message of a request. `reason` is stop, length, aborted, moved or failed.

    For a failed request, `detail` is the cause and `code` the API's error code, or empty.
    """

    request: int
    reason: str
    detail: str = ""
    code: str = ""

    @property
    def computed(self) -> bool:
        """Whether the engine computed what was asked."""
        return self.reason in ("stop", "length", "moved")


ToEngine = WorkerConfig | Generate | Abort | Suspend | Forget | Discard | SetThreads
FromEngine = (
    Ready | LoadFailed | ThreadsSet | Discarded | Started | PromptProgress | Tokens | Stepped | StoreUsed | Finished
)
Answer = Started | PromptProgress | Tokens | Finished
"""A message about one request."""

_encoder = msgspec.msgpack.Encoder()
to_engine_decoder: Final = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: Final = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """Return `message` as bytes for the socket pair."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Splits a byte stream into message bodies."""

    def __init__(self) -> None:
        """Start with an empty buffer."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies that `data` completes. Raises ValueError for a length over MAX_FRAME."""
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ValueError(f"a message of {length} bytes exceeds the maximum of {MAX_FRAME}")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            yield body
