"""Messages between the gateway and its prompt workers.

A message is the length of its body and the number of its job, each four big-endian bytes, then the body. A reply
carries the number of its job, or 0 if it belongs to none. Jobs are JSON, since clients send integers of any size, which
MessagePack cannot represent; replies are MessagePack.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from engine import Mark
from gateway.errors import ApiError, ContextLengthExceededError, InvalidRequestError, UnsupportedParameterError
from gateway.protocol.tools import AnyFormat, ErrorPaths, FunctionTool, OutputConstraint, TextFormat, ToolChoice

HEAD: Final = struct.Struct(">II")
"""Length of the body in bytes, and number of the job."""
MAX_FRAME: Final = 64 << 20
"""Maximum bytes of one message; a stored conversation and a request of 1 MiB together are far smaller."""
SLOW_SECONDS: Final = 0.05
"""CPU seconds of a job beyond which the gateway lowers the worker's priority in favor of engines. Only root may raise
the priority again, so the worker exits after its reply and the host forks a new one."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of a prompt worker host, which reads it from its standard input."""

    model: str
    """Path of the GGUF file."""
    mark: Mark | None = None
    """The file's mark when the gateway loaded the model; None skips the check."""
    template: str
    """Jinja source of the chat template."""
    instructions: str = ""
    """The operator's instructions, put before every request's own."""
    processor_seconds: float = 2.0
    """Maximum CPU seconds of one request; 32 768 tokens take 0.1 s, or 0.3 s on a slow machine."""
    seconds: float = 20.0
    """Maximum elapsed seconds of one request."""
    memory: int = 1 << 30
    """Maximum bytes that a worker may allocate; mapped files do not count."""


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """Render and tokenize a conversation, and build the grammar of its answer."""

    messages: list[dict[str, Any]]
    """The messages in the format of chat templates, without the instructions."""
    began: int
    """Start of the conversation in epoch seconds; the template's clock is fixed to it."""
    after: str = ""
    """Role of the message after whose last content token `messages` are appended; empty for a whole conversation."""
    instructions: str | None = None
    tools: list[FunctionTool] = []
    choice: ToolChoice = "auto"
    format: AnyFormat = TextFormat()
    error_paths: ErrorPaths = ErrorPaths()
    answer: bool = True
    """Whether the prompt ends where an answer begins; otherwise it ends with the last message's content."""
    thinking: bool = False
    """Value of `enable_thinking` in the chat template."""
    limit: int = 0
    """Number of tokens from which on a prompt is too long; 0 means no limit."""
    truncate: bool = False
    """Whether to drop the oldest turns of a conversation that is too long, down to half of `limit`."""


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """Tokenize a text without a template."""

    text: str
    special: bool = False
    """Whether the text may become control tokens."""
    bos: bool = False
    """Whether BOS comes first, if the model requires one."""


class OperatorPrefix(msgspec.Struct, frozen=True, tag="operator_prefix"):
    """Compute the tokens that all prompts of conversations started at `began` share, for all users."""

    began: int


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """A worker is ready; `pid` is its process id."""

    pid: int


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """The prompt. Token ids are packed as native 32-bit integers."""

    ids: bytes
    operator: bytes = b""
    """Ids of the operator prefix; empty if the operator set no instructions."""
    turn: int = 0
    """Index of the first retained user message, counting user messages only."""
    form: OutputConstraint = OutputConstraint()


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request is invalid: one of the API's errors."""

    code: str
    message: str
    param: str | None = None

    def error(self) -> ApiError:
        """Return the error for the client."""
        return _ERRORS[self.code](self.message, param=self.param)


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """An internal error of the worker: the type of the exception and where it was raised, without any content."""

    kind: str
    place: str


class Died(msgspec.Struct, frozen=True, tag="died"):
    """The worker's process died; the host starts another one."""

    signal: int
    """Number of the signal that ended the process; 0 for none."""


class Unavailable(msgspec.Struct, frozen=True, tag="unavailable"):
    """The host cannot load the model, and exits."""

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
    """Return a body with its header, as sent over a worker's socket."""
    return HEAD.pack(len(body), number) + body
