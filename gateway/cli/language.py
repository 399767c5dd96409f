"""English or Chinese, as the terminal's locale says."""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_chinese(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether texts are to be Chinese: the first of POSIX's variables that is set decides."""
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    return next((environ[name] for name in names if environ.get(name)), "").lower().startswith("zh")


class Phrases:
    """Texts by name, each as (English, Chinese) with `str.format` fields."""

    def __init__(self, table: Mapping[str, tuple[str, str]], *, chinese: bool) -> None:
        """Speak one of the two languages of `table`."""
        self._table = table
        self.chinese = chinese

    def __call__(self, name: str, /, **values: object) -> str:
        """The text `name`, with `values` in its fields."""
        return self._table[name][self.chinese].format(**values)
