"""Every refusal that a user can meet, with the codes of docs/api.md."""

from __future__ import annotations

from typing import Any, Final

MAX_TEXT: Final = 1000
"""Characters of a message, and of a field's name: both may quote what a client sent."""


class ApiError(Exception):
    """A refusal with its code and HTTP status; `param` names the field that is to blame."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """Keep `message`, which tells the user what to do."""
        super().__init__(message)
        self.message = _shortened(message)
        self.param = None if param is None else _shortened(param)

    def body(self) -> dict[str, Any]:
        """The `error` object, alike over WebSocket and HTTP."""
        return {"type": self.type, "code": self.code, "message": self.message, "param": self.param}


class InvalidRequestError(ApiError):
    """A field is missing, of the wrong type or out of range."""


class InvalidJsonError(ApiError):
    """A message is not JSON."""

    code = "invalid_json"


class UnsupportedParameterError(ApiError):
    """A field that this server does not know or cannot honour: never ignored in silence."""

    code = "unsupported_parameter"


class MessageTooLargeError(ApiError):
    """A message is over 1 MiB."""

    code = "message_too_large"
    status = 413


class ModelNotFoundError(ApiError):
    """A model other than the one served."""

    code = "model_not_found"
    status = 404


class PreviousResponseNotFoundError(ApiError):
    """No such response, or not this user's: the two are not told apart."""

    code = "previous_response_not_found"


class ResponseNotFoundError(ApiError):
    """No such response to retrieve, resume, cancel or delete, or not this user's."""

    status = 404

    def __init__(self, response: str) -> None:
        """`response` is the id that was asked for."""
        super().__init__(f"there is no response {response}", param="response_id")


class ContextLengthExceededError(ApiError):
    """The prompt leaves no room for an answer."""

    code = "context_length_exceeded"


class InvalidApiKeyError(ApiError):
    """There are keys, and the request has none, or not a valid one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class ConnectionLimitError(ApiError):
    """The user or the address has as many connections as it may have."""

    code = "websocket_connection_limit_reached"
    status = 429
    type = "rate_limit_error"


class QueueFullError(ApiError):
    """As many requests wait as may wait."""

    code = "queue_full"
    status = 503
    type = "server_error"


class QueueTimeoutError(ApiError):
    """A request waited for as long as it may wait."""

    code = "queue_timeout"
    status = 503
    type = "server_error"


class RateLimitExceededError(ApiError):
    """A key's tokens for now are used up, or its messages come too fast."""

    code = "rate_limit_exceeded"
    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, retry_after: int) -> None:
        """`retry_after` is in seconds."""
        super().__init__(message)
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """With the seconds after which it is worth trying again."""
        return {**super().body(), "retry_after": self.retry_after}


class EngineUnavailableError(ApiError):
    """The engine died, or can't be started; or the user's requests kill engines."""

    code = "engine_unavailable"
    status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        """`retry_after` is in seconds, where it is known when it is worth trying again."""
        super().__init__(message)
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """With the seconds, where they are known."""
        return super().body() | ({} if self.retry_after is None else {"retry_after": self.retry_after})


class StoreUnavailableError(ApiError):
    """The disk did not take the conversation, so the turn is not acknowledged."""

    code = "store_unavailable"
    status = 503
    type = "server_error"


class InternalError(ApiError):
    """The gateway itself is at fault; the log has the stack under the request's id."""

    code = "internal_error"
    status = 500
    type = "server_error"

    def __init__(self, request_id: str) -> None:
        """`request_id` is the id under which the fault is logged."""
        super().__init__(
            f"the gateway failed on this request; its operator finds the reason in the log as {request_id}"
        )
        self.request_id = request_id

    def body(self) -> dict[str, Any]:
        """With the id, for those who report it."""
        return {**super().body(), "request_id": self.request_id}


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
