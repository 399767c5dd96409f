"""Findings of `samovar doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """Severity of a finding and its colour. With a FAIL, `samovar serve` would fail."""

    OK = "green"
    WARN = "yellow"
    FAIL = "red"


@dataclass(frozen=True)
class Finding:
    """One line of the report: the subject, what was found, and how to fix it."""

    mark: Mark
    subject: str
    text: str
    fix: str = ""
