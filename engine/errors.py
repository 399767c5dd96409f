"""The errors of this package, one class each."""


class EngineError(Exception):
    """Base of the engine errors. `code` is the error code that the gateway returns to the client (docs/api.md)."""

    code = "engine_unavailable"


class ModelLoadError(EngineError):
    """llama.cpp could not open the model file, or could not create a context for it."""


class QuantizeError(EngineError):
    """llama.cpp could not quantize a model."""


class DecodeError(EngineError):
    """llama.cpp refused a step: no cells were free (status 1) or the batch was invalid (negative status)."""

    def __init__(self, status: int) -> None:
        """`status` is what llama_decode returned."""
        super().__init__(f"llama_decode returned {status}")


class EngineDiedError(EngineError):
    """The engine process ended before it finished a request."""

    def __init__(self, message: str, *, requests: int = 0) -> None:
        """`requests` is the number of requests that ran when the process ended; 0 if it never received this one."""
        super().__init__(message)
        self.requests = requests


class SamplingError(EngineError):
    """No next token can be sampled: the logits are not finite, or earlier tokens do not fit the grammar."""


class GrammarError(EngineError):
    """The grammar is invalid, or takes more time than one request may cost the others."""

    code = "invalid_request"
