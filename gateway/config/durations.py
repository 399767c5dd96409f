"""Durations in settings: seconds, or a number with a unit."""

from __future__ import annotations

import re
from typing import Final

FORMS: Final = "seconds (300, 1.5) or a number with s, min, h, days or weeks (90s, 15 min, 7 days)"
"""The accepted forms, for error messages."""
_NAMES: Final = {
    1: "s sec secs second seconds",
    60: "m min mins minute minutes",
    3600: "h hr hrs hour hours",
    86_400: "d day days",
    7 * 86_400: "w week weeks",
}
UNITS: Final = {name: seconds for seconds, names in _NAMES.items() for name in names.split()}
"""Seconds of each accepted unit. Months and years are not accepted, because their length varies."""
_DURATION: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as `300`, `1.5`, `90s` or `7 days`. Raises ValueError for other forms."""
    match = _DURATION.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or (unit and unit not in UNITS):
        raise ValueError(f"must be {FORMS}")
    return float(match[1]) * UNITS.get(unit, 1)
