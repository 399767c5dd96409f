"""What the gateway and its prompt workers send each other.

A message's body stands behind its length and the number of its job, each four big-endian bytes. Replies carry the
number of the job that they answer, 0 where they answer none. Jobs are JSON, since clients send integers of any size,
which MessagePack cannot carry; replies are MessagePack.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from engine import Mark
from gateway.errors import ApiError, ContextLengthExceededError, InvalidRequestError, UnsupportedParameterError
from gateway.protocol.tools import ErrorPaths, Format, FunctionTool, OutputConstraint, TextFormat, ToolChoice

HEAD: Final = struct.Struct(">II")
"""Length of the body in bytes, and number of the job."""
MAX_FRAME: Final = 64 << 20
"""Bytes of one message at most: a stored conversation and a request of 1 MiB together are far below."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What a host of prompt workers serves; it reads this from its standard input."""

    model: str
    """Path of the GGUF file."""
    mark: Mark | None = None
    """The file's mark when the gateway loaded it; None when any file will do."""
    template: str
    """Jinja source of the chat template."""
    instructions: str = ""
    """The operator's, put before every request's own."""
    processor_seconds: float = 2.0
    """Processor time of one request at most; 32 768 tokens take 0.1 s, and 0.3 s on a slow machine."""
    seconds: float = 20.0
    """Elapsed time of one request at most."""
    memory: int = 1 << 30
    """Bytes that a worker may allocate; mapped files do not count."""


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """Render and tokenize a conversation, and build the grammar of its answer."""

    messages: list[dict[str, Any]]
    """As chat templates take them, without the instructions."""
    began: int
    """When the conversation began, in seconds of the epoch: the template's clock stands still there."""
    after: str = ""
    """Role of the message behind whose last content token `messages` are appended; empty for a whole conversation."""
    instructions: str | None = None
    tools: list[FunctionTool] = []
    choice: ToolChoice = "auto"
    format: Format = TextFormat()
    error_paths: ErrorPaths = ErrorPaths()
    answer: bool = True
    """Whether the prompt ends where an answer begins; otherwise it ends with the last message's content."""
    limit: int = 0
    """A prompt of so many tokens or more does not fit; 0: any length is welcome."""
    truncate: bool = False
    """Whether the oldest turns of a conversation that does not fit are dropped, down to half of `limit`."""


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """Tokenize a text that no template surrounds; it cannot become control tokens."""

    text: str


class OperatorPrefix(msgspec.Struct, frozen=True, tag="operator_prefix"):
    """Return the tokens with which every prompt of a conversation that began then starts, whoever asks."""

    began: int


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """A worker is ready; `pid` is its process."""

    pid: int


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """The prompt. Token ids are native 32-bit integers, one after the other."""

    ids: bytes
    operator: bytes = b""
    """Ids of the operator prefix; empty without instructions of the operator."""
    turn: int = 0
    """Index of the first user message that was kept, counting user messages only."""
    form: OutputConstraint = OutputConstraint()


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request is at fault: an error of docs/api.md."""

    code: str
    message: str
    param: str | None = None

    def error(self) -> ApiError:
        """Return the error that its user gets."""
        return _ERRORS[self.code](self.message, param=self.param)


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """A fault of the worker program: the type of the exception and where it was raised, without any content."""

    kind: str
    place: str


class Died(msgspec.Struct, frozen=True, tag="died"):
    """The worker's process ended in the middle of a request; another one takes its place."""

    signal: int
    """Number of the signal that ended it; 0 when it was none."""


class Unavailable(msgspec.Struct, frozen=True, tag="unavailable"):
    """The host cannot load the model, and ends."""

    reason: str


_ERRORS: Final = {
    error.code: error for error in (InvalidRequestError, ContextLengthExceededError, UnsupportedParameterError)
}
Job = Encode | Tokenize | OperatorPrefix
Reply = Serving | Encoded | Refused | Fault | Died | Unavailable

encode_job: Final = msgspec.json.Encoder().encode
job_decoder: Final = msgspec.json.Decoder(Job)
encode_reply: Final = msgspec.msgpack.Encoder().encode
reply_decoder: Final = msgspec.msgpack.Decoder(Reply)
encode_configuration: Final = encode_reply
configuration_decoder: Final = msgspec.msgpack.Decoder(Configuration)


def frame(body: bytes, number: int = 0) -> bytes:
    """Return a body as it goes over a worker's socket."""
    return HEAD.pack(len(body), number) + body
