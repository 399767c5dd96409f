"""The command line `samovar`: find the command, parse its arguments, report a user's mistake in one line on stderr.

A command is a module or package in this folder whose docstring starts with its usage and its help in one line:

    `samovar NAME [ARGUMENTS]`: what it does

The module defines `run(settings)`, which returns the exit code. A command with ARGUMENTS also defines
`arguments(parser)`, which adds them, and takes the parsed options in `run(settings, options)`; `SETTINGS` names the
settings that it reads, if not all. `samovar NAME --help` imports such a module, so it must import slow dependencies
inside its functions.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Final

from gateway.cli.arguments import Parser, split
from gateway.cli.streams import OutputError, discard_output, prepare, print_error, require_unicode_paths
from gateway.config.settings import Settings, SettingsError, load

SHARED: Final = ("state_dir", "cache")
"""Settings that every command accepts."""
_USAGE: Final = re.compile(r'"""`samovar (?P<name>\w+)(?P<arguments>[^`]*)`: (?P<help>.*?)\.?(?:""")?$')


class CommandError(Exception):
    """A command failed; the message says why and what to do."""


@dataclass(frozen=True)
class Command:
    """A command, parsed from the first line of its module without importing it."""

    name: str
    help: str
    has_arguments: bool

    @property
    def module(self) -> ModuleType:
        """Import and return the command's module; for most commands this loads llama.cpp."""
        return import_module(f"gateway.cli.{self.name}")

    @property
    def settings(self) -> list[str]:
        """Return the names of the settings that the command accepts as flags."""
        read = getattr(self.module, "SETTINGS", Settings.model_fields) if self.has_arguments else Settings.model_fields
        return [name for name in Settings.model_fields if name in read or name in SHARED]


def commands() -> dict[str, Command]:
    """Return all commands by name."""
    found = {}
    folder = Path(__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        with path.open(encoding="utf-8") as source:
            usage = _USAGE.match(source.readline().strip())
        if usage is not None:
            found[usage["name"]] = Command(usage["name"], usage["help"], bool(usage["arguments"]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 success, 1 failure, 2 wrong usage."""
    if arguments is None:
        require_unicode_paths()
        arguments = sys.argv[1:]
    prepare()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except OutputError as error:
        discard_output()
        if not error.unread:
            print_error(str(error))
        return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        command, settings, options = _parse(arguments)
        # Imported late, so that `samovar --help` does not wait for llama.cpp.
        run = command.module.run
        return int(run(settings, options) if command.has_arguments else run(settings))
    except SettingsError as error:
        print_error(str(error))
        return 2
    except CommandError as error:
        print_error(str(error))
        return 1
    except OSError as error:
        if error.filename is None or isinstance(error, OutputError):
            raise
        print_error(f"{error.filename}: {error.strerror}; run as the user that owns it, or name another path")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parse(arguments: Sequence[str]) -> tuple[Command, Settings, object]:
    known = commands()
    parser = Parser(
        "samovar", description="Serve a small language model to many people from one machine without a GPU."
    )
    parser.add_argument("--version", action="version", version=f"samovar {metadata.version('samovar')}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in known.items():
        named = name in arguments[:1]  # import only the module of the command that is run
        settings = command.settings if named else []
        own = choices.add_parser(name, help=command.help, description=command.help, settings=settings)
        if named and command.has_arguments:
            command.module.arguments(own)
    flags, options = split(parser.parse_args(arguments))
    return known[options.command], load(flags, options.config), options
