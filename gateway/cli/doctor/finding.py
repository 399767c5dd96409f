"""Findings of `samovar doctor`, and what all of its checks share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gateway.cli.language import Phrases
from gateway.config.settings import Settings


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


class Checks:
    """Checks of some settings, whose findings are in one language."""

    def __init__(self, settings: Settings, say: Phrases) -> None:
        """Check `settings`; `say` selects the language."""
        self._settings = settings
        self._say = say

    def _good(self, subject: str, text: str, **values: object) -> Finding:
        return Finding(Mark.OK, self._say(subject), self._say(text, **values))

    def _bad(self, mark: Mark, subject: str, text: str, fix: str, **values: object) -> Finding:
        return Finding(mark, self._say(subject), self._say(text, **values), self._say(fix, **values))


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest of its parents that exists."""
    return next(each for each in (path, *path.absolute().parents) if _exists(each))


def size(number: int) -> str:
    """Return a number of bytes in MiB, or from 1 GiB on in GiB."""
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):.0f} MiB"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder without read permission
        return False
