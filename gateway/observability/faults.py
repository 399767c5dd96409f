"""Unexpected exceptions: how they are logged, and the error that the client receives instead."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

import structlog

from gateway.errors import ApiError, InternalError

log = structlog.get_logger("faults")

FRAMES: Final = 30
"""Maximum stack frames logged, the innermost ones: a recursion error has a thousand."""
_ROOT: Final = Path(__file__).parents[2]


def report(error: BaseException, request_id: str) -> InternalError:
    """Log `error` under `request_id` and return the error for the client.

    Only types and stack frames are logged, because an exception's message may quote the request.
    """
    log.error("internal error", request_id=request_id, error=_kinds(error), frames=_frames(error))
    return InternalError(request_id)


def as_api_error(error: Exception, request_id: str) -> ApiError:
    """Return the error for the client: `error` itself if it is an ApiError, else the result of `report`."""
    return error if isinstance(error, ApiError) else report(error, request_id)


def _kinds(error: BaseException) -> list[str]:
    """Return the type names of `error` and of its chain of causes."""
    kinds: list[str] = []
    at: BaseException | None = error
    while at is not None and len(kinds) < FRAMES:
        kinds.append(type(at).__name__)
        at = at.__cause__ or at.__context__
    return kinds


def _frames(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]


def _short(file: str) -> str:
    path = Path(file)
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else "/".join(path.parts[-2:])
