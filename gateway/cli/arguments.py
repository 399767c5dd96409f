"""argparse for `samovar`: every subcommand accepts settings as flags, and a mistake is reported in one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from gateway.config.settings import Settings, SettingsError

_SOURCES: Final = "also read from SAMOVAR_* and samovar.toml; durations: seconds, or 90s, 15 min, 7 days"
_SETTING: Final = "setting "
"""Prefix of the names under which settings are parsed, so that they cannot clash with a command's arguments."""


class Parser(argparse.ArgumentParser):
    """A parser that accepts settings as flags, in its subcommands too, and names the argument that it rejects."""

    def __init__(self, *args: Any, settings: Sequence[str] = (), **kwargs: Any) -> None:
        """Accept the settings named in `settings` as flags, and `--config` with them."""
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._settings = settings
        if settings:
            self._add_settings()

    def _add_settings(self) -> None:
        # No defaults: a subcommand's default would override a flag given before the subcommand.
        group = self.add_argument_group("settings", _SOURCES)
        text = "settings file to read instead of ./samovar.toml"
        group.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=text)
        for name in self._settings:
            field = Settings.model_fields[name]
            options: dict[str, Any] = {"help": field.description, "metavar": "VALUE", "default": argparse.SUPPRESS}
            if field.annotation is bool:
                options |= {"nargs": "?", "const": "true"}
            group.add_argument(f"--{name.replace('_', '-')}", dest=_SETTING + name, **options)

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Add subcommands that accept the same settings."""
        return super().add_subparsers(**{"parser_class": partial(Parser, settings=self._settings), **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse `args`. Raises SettingsError for an argument that neither this parser nor an outer one knows."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            name = rest[0].partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, 1)
            raise SettingsError(f"{name}: no such setting (command line){f'; did you mean {near[0]}?' if near else ''}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Print `message` in one line and exit with code 2."""
        self.exit(2, f"samovar: {message}; see {self.prog} --help\n")


def split(parsed: argparse.Namespace) -> tuple[dict[str, str], argparse.Namespace]:
    """Split parsed arguments into the settings by name, and the command's own options with `config`."""
    flags = {name.removeprefix(_SETTING): value for name, value in vars(parsed).items() if name.startswith(_SETTING)}
    rest = {name: value for name, value in vars(parsed).items() if not name.startswith(_SETTING)}
    return flags, argparse.Namespace(**{"config": None, **rest})
