"""The catalogue of errors that clients receive, with their codes and HTTP statuses."""

from __future__ import annotations

from typing import Any, Final

MAX_TEXT: Final = 1000
"""Maximum characters of a message and of a field's name, since both may quote what a client sent."""


class ApiError(Exception):
    """Base class of all errors that clients receive; `param` names the field at fault."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """`message` says what is wrong and what to do."""
        super().__init__(message)
        self.message = _shortened(message)
        self.param = None if param is None else _shortened(param)

    def body(self) -> dict[str, Any]:
        """Return the `error` object, which is the same over WebSocket and HTTP."""
        return {"type": self.type, "code": self.code, "message": self.message, "param": self.param, **self.details}

    @property
    def details(self) -> dict[str, Any]:
        """Fields that only this kind of error has."""
        return {}


class InvalidRequestError(ApiError):
    """A field is missing, of the wrong type or out of range."""


class InvalidJsonError(ApiError):
    """A message is not JSON."""

    code = "invalid_json"


class UnsupportedParameterError(ApiError):
    """A field asks for something that cannot be done; with `strict_fields` also a field that has no effect."""

    code = "unsupported_parameter"


class MessageTooLargeError(ApiError):
    """A message is larger than 1 MiB."""

    code = "message_too_large"
    status = 413


class ModelNotFoundError(ApiError):
    """The request names a model that is not served."""

    code = "model_not_found"
    status = 404


class PreviousResponseNotFoundError(ApiError):
    """The previous response does not exist or belongs to another user; clients cannot distinguish the two."""

    code = "previous_response_not_found"


class ResponseNotFoundError(ApiError):
    """The response to retrieve, resume, cancel or delete does not exist or belongs to another user."""

    status = 404

    def __init__(self, response: str) -> None:
        """`response` is the requested id."""
        super().__init__(f"there is no response {response}", param="response_id")


class ConversationNotFoundError(ApiError):
    """The conversation does not exist, was deleted or belongs to another user; clients cannot distinguish these."""

    status = 404

    def __init__(self, conversation: str) -> None:
        """`conversation` is the requested id."""
        super().__init__(f"there is no conversation {conversation}", param="conversation")


class ConversationsNeedKeysError(ApiError):
    """The gateway has no API keys, so that it cannot tell whose conversations are meant."""

    status = 403

    def __init__(self) -> None:
        """Create the error."""
        super().__init__(
            "conversations are stored for users with API keys, and this gateway has none; continue responses with "
            "`previous_response_id`, or let the operator run `samovar keys add NAME`",
            param="conversation",
        )


class NoUsersError(ApiError):
    """The gateway has no API keys, so that it knows no users."""

    status = 403

    def __init__(self) -> None:
        """Create the error."""
        super().__init__(
            "this gateway has no API keys, so that it knows no users; create one with `samovar keys add NAME`"
        )


class UserNotFoundError(ApiError):
    """There is no user with this id."""

    status = 404

    def __init__(self, user: str) -> None:
        """`user` is the requested id."""
        super().__init__(f"there is no user {user}; list them with GET /v1/admin/users", param="id")


class AdminKeyNeededError(ApiError):
    """The caller has no admin key."""

    code = "invalid_api_key"
    status = 403
    type = "authentication_error"

    def __init__(self, *, has_keys: bool) -> None:
        """`has_keys` says whether the caller has a key that is not an admin's; otherwise there are no keys at all."""
        reason = "the key of this request is not an admin's" if has_keys else "this gateway has no API keys"
        super().__init__(f"this needs an admin key, and {reason}; create one with `samovar keys add NAME --admin`")


class ItemNotFoundError(ApiError):
    """A referenced item does not exist or belongs to another user."""

    status = 404


class ContextLengthExceededError(ApiError):
    """The prompt leaves no room for an answer."""

    code = "context_length_exceeded"


class InvalidApiKeyError(ApiError):
    """API keys exist, and the request has no valid one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class ConnectionLimitError(ApiError):
    """The user or the address has reached its connection limit."""

    code = "websocket_connection_limit_reached"
    status = 429
    type = "rate_limit_error"


class QueueFullError(ApiError):
    """The queue has reached its limit."""

    code = "queue_full"
    status = 503
    type = "server_error"


class QueueTimeoutError(ApiError):
    """A request waited longer than the queue timeout."""

    code = "queue_timeout"
    status = 503
    type = "server_error"


class RateLimitExceededError(ApiError):
    """A key has used up its tokens for now, or sends messages too fast."""

    code = "rate_limit_exceeded"
    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, retry_after: int, *, limit: str) -> None:
        """`retry_after` is the number of seconds to wait before a retry, `limit` the name of the limit."""
        super().__init__(message)
        self.retry_after = retry_after
        self.limit = limit

    @property
    def details(self) -> dict[str, Any]:
        """The seconds to wait, and the name of the limit."""
        return {"retry_after": self.retry_after, "limit": self.limit}


class EngineUnavailableError(ApiError):
    """The engine crashed or cannot start, or the user's requests crash engines."""

    code = "engine_unavailable"
    status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        """`retry_after` is the number of seconds to wait before a retry; None if unknown."""
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def details(self) -> dict[str, Any]:
        """The seconds to wait, if they are known."""
        return {} if self.retry_after is None else {"retry_after": self.retry_after}


class StoreUnavailableError(ApiError):
    """The conversation could not be written to disk, so the turn is not acknowledged."""

    code = "store_unavailable"
    status = 503
    type = "server_error"


class InternalError(ApiError):
    """A fault of the gateway itself; the log has the stack trace under the request's id."""

    code = "internal_error"
    status = 500
    type = "server_error"

    def __init__(self, request_id: str) -> None:
        """`request_id` is the id under which the fault is logged."""
        super().__init__(
            f"the gateway failed on this request; its operator finds the reason in the log under {request_id}"
        )
        self.request_id = request_id

    @property
    def details(self) -> dict[str, Any]:
        """The request id, so that clients can report it."""
        return {"request_id": self.request_id}


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
