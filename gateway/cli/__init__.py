"""The command `samovar`: one function per subcommand, errors in one line on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from gateway.settings import Settings, SettingsError, load

COMMANDS: Final = {
    "serve": "the gateway: chat page, WebSocket, metrics",
}


class CommandError(Exception):
    """A command cannot go on; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 well, 1 failed, 2 wrong usage."""
    parsed = vars(_parser().parse_args(arguments))
    command, config = parsed.pop("command"), parsed.pop("config")
    try:
        settings = load({name: value for name, value in parsed.items() if value is not None}, config)
    except SettingsError as error:
        print(f"samovar: {error}", file=sys.stderr)
        return 2
    try:
        # Imported late: `samovar --help` need not wait for llama.cpp.
        return int(import_module(f"gateway.cli.{command}").run(settings))
    except CommandError as error:
        print(f"samovar: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("samovar", description="Many people chat with a small model on one machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--config", type=Path, metavar="FILE", help="settings file, instead of ./samovar.toml")
        for setting, field in Settings.model_fields.items():
            options: dict[str, Any] = {"help": field.description, "metavar": "VALUE"}
            if field.annotation is bool:
                options |= {"nargs": "?", "const": "true"}
            command.add_argument(f"--{setting.replace('_', '-')}", **options)
    return parser
