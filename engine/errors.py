"""Everything that can go wrong in this room, one class each."""


class EngineError(Exception):
    """Base of this room's errors; `code` is the name of docs/api.md that the gateway passes on."""

    code = "engine_unavailable"


class ModelLoadError(EngineError):
    """llama.cpp could not open the model file, or could not make a context for it."""


class QuantizeError(EngineError):
    """llama.cpp could not write a model's weights in another precision."""


class DecodeError(EngineError):
    """llama.cpp refused a step: no cells were left (status 1) or the batch was invalid (negative status)."""

    def __init__(self, status: int) -> None:
        """Keep llama_decode's own `status`."""
        super().__init__(f"llama_decode returned {status}")
        self.status = status


class EngineDiedError(EngineError):
    """The engine's process ended while it still owed an answer."""

    def __init__(self, message: str, *, requests: int = 0) -> None:
        """`requests` is how many it had when it ended; 0 when it had not taken this one."""
        super().__init__(message)
        self.requests = requests


class SamplingError(EngineError):
    """No next token can be drawn: the logits are no numbers, or no token fits the grammar."""


class GrammarError(EngineError):
    """A grammar that llama.cpp does not take, or that costs more time than a request may take from the others."""

    code = "invalid_request"
