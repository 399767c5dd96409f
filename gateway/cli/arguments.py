"""argparse for `samovar`: settings as flags of every subcommand, and mistakes told in one line by name."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from gateway.config.settings import Settings, SettingsError

_SOURCES: Final = "also read from SAMOVAR_* and from samovar.toml; durations are seconds, or 90s, 15 min, 7 days"
_SETTING: Final = "setting "
"""Begins the names under which settings are parsed, so that no argument of a command is mistaken for one."""


class Parser(argparse.ArgumentParser):
    """A parser that takes settings as flags, as its subcommands then do, and refuses what it doesn't know by name."""

    def __init__(self, *args: Any, settings: Sequence[str] = (), **kwargs: Any) -> None:
        """Take `settings`, given by their names, and `--config` with them."""
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._settings = settings
        if settings:
            self._add_settings()

    def _add_settings(self) -> None:
        # No defaults: a subcommand's would hide what was said before it.
        group = self.add_argument_group("settings", _SOURCES)
        text = "settings file, instead of ./samovar.toml"
        group.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=text)
        for name in self._settings:
            field = Settings.model_fields[name]
            options: dict[str, Any] = {"help": field.description, "metavar": "VALUE", "default": argparse.SUPPRESS}
            if field.annotation is bool:
                options |= {"nargs": "?", "const": "true"}
            group.add_argument(f"--{name.replace('_', '-')}", dest=_SETTING + name, **options)

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Subcommands, each of which takes the same settings."""
        return super().add_subparsers(**{"parser_class": partial(Parser, settings=self._settings), **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; the innermost subcommand refuses what nobody takes. Raises SettingsError."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            name = rest[0].partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, 1)
            raise SettingsError(f"{name}: no such setting (command line){f'; did you mean {near[0]}?' if near else ''}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Leave with one line."""
        self.exit(2, f"samovar: {message}; see {self.prog} --help\n")


def split(parsed: argparse.Namespace) -> tuple[dict[str, str], argparse.Namespace]:
    """The settings among what was parsed, and the rest with `config`."""
    flags = {name.removeprefix(_SETTING): value for name, value in vars(parsed).items() if name.startswith(_SETTING)}
    rest = {name: value for name, value in vars(parsed).items() if not name.startswith(_SETTING)}
    return flags, argparse.Namespace(**{"config": None, **rest})
