"""Texts in English or Chinese, chosen by the locale of the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_chinese(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether texts are Chinese. The first POSIX locale variable that is set decides."""
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    return next((environ[name] for name in names if environ.get(name)), "").lower().startswith("zh")


class Phrases:
    """Texts by name, each as (English, Chinese) with `str.format` fields."""

    def __init__(self, table: Mapping[str, tuple[str, str]], *, chinese: bool) -> None:
        """Select one of the two languages of `table`."""
        self._table = table
        self.chinese = chinese

    def __call__(self, name: str, /, **values: object) -> str:
        """Return the text `name` with its fields filled from `values`."""
        return self._table[name][self.chinese].format(**values)
