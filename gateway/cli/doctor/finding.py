"""What a doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """How bad a finding is: with a FAIL, serving would fail."""

    OK = "green"
    WARN = "yellow"
    FAIL = "red"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what mends it."""

    mark: Mark
    subject: str
    text: str
    mend: str = ""
