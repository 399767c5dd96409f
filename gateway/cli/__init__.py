"""The command `samovar`: one function per subcommand, errors in one line on stderr."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from gateway.settings import Settings, SettingsError, load

COMMANDS: Final = {
    "serve": "the gateway: chat page, WebSocket, metrics",
    "chat": "a chat in the terminal, over the WebSocket",
    "doctor": "checks this machine and the settings, and says how to mend what is wrong",
}


class CommandError(Exception):
    """A command cannot go on; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 well, 1 failed, 2 wrong usage."""
    known, rest = _parser().parse_known_args(arguments)
    parsed = vars(known)
    command, config = parsed.pop("command"), parsed.pop("config")
    try:
        _nothing_unknown(rest)
        settings = load({name: value for name, value in parsed.items() if value is not None}, config)
        if command != "chat":  # which opens no door of its own
            settings.check_door()
    except SettingsError as error:
        print(f"samovar: {error}", file=sys.stderr)
        return 2
    try:
        # Imported late: `samovar --help` need not wait for llama.cpp.
        return int(import_module(f"gateway.cli.{command}").run(settings))
    except CommandError as error:
        print(f"samovar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"samovar: {message}; see {self.prog} --help\n")


def _nothing_unknown(rest: Sequence[str]) -> None:
    """Refuse what no flag took, by name."""
    if rest:
        name = rest[0].partition("=")[0]
        near = difflib.get_close_matches(name, [_flag(setting) for setting in Settings.model_fields], 1)
        raise SettingsError(f"{name}: no such setting (command line){f'; {near[0]} is one' if near else ''}")


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("samovar", description="Many people chat with a small model on one machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--config", type=Path, metavar="FILE", help="settings file, instead of ./samovar.toml")
        for setting, field in Settings.model_fields.items():
            options: dict[str, Any] = {"help": field.description, "metavar": "VALUE"}
            if field.annotation is bool:
                options |= {"nargs": "?", "const": "true"}
            command.add_argument(_flag(setting), **options)
    return parser
