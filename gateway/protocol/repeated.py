"""Fields without effect that the response object repeats, as OpenAI's does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_TEXT: Final = 512
"""Maximum characters of a repeated text. Every event with the response has it, and the stored response."""
_TEXTS: Final = ("user", "prompt_cache_key", "safety_identifier")
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARIES: Final = ("auto", "concise", "detailed")
_RETENTIONS: Final = ("in_memory", "24h")
_VERBOSITIES: Final = ("low", "medium", "high")


def repeated_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the response object that repeat fields of the request body `raw`.

    A value that OpenAI's types do not allow is not repeated, since typed clients could not read the response.
    """
    found: dict[str, Any] = {name: raw[name] for name in _TEXTS if _is_text(raw.get(name))}
    calls = raw.get("max_tool_calls")
    if isinstance(calls, int) and not isinstance(calls, bool) and 0 <= calls < 1 << 31:
        found["max_tool_calls"] = calls
    if (retention := _one_of(_RETENTIONS, raw.get("prompt_cache_retention"))) is not None:
        found["prompt_cache_retention"] = retention
    if isinstance(reasoning := raw.get("reasoning"), dict):
        summary = reasoning.get("summary") or reasoning.get("generate_summary")
        found["reasoning"] = {
            "effort": _one_of(_EFFORTS, reasoning.get("effort")),
            "summary": _one_of(_SUMMARIES, summary),
        }
    return found


def verbosity(wanted: object) -> str:
    """Return the `text.verbosity` of the response object."""
    return _one_of(_VERBOSITIES, wanted) or "medium"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _one_of(allowed: tuple[str, ...], value: object) -> str | None:
    return value if isinstance(value, str) and value in allowed else None
