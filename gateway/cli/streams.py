"""Standard streams that are closed, full or in an encoding that lacks characters, and paths in the C locale."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NAMES: Final = ("stdin", "stdout", "stderr")


class OutputError(Exception):
    """Stdout took no output; no OSError, so that no handler takes it for the failure of a file."""

    def __init__(self, number: int | None, reason: str) -> None:
        """Fail with the error `number` of the operating system, in words `reason`."""
        super().__init__(f"the output can't be written: {reason}")
        self.unread = number == errno.EPIPE
        """Whether the reader left, as `head` does, and needs no message."""


class _Output(io.FileIO):
    """Descriptor 1 with errors that are known as stdout's."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error.errno, error.strerror or "unknown error") from error


def prepare() -> None:
    """Open streams that were closed on /dev/null, and let all print `?` for a character that their encoding lacks.

    The next file that is opened would else take the descriptor of a closed stream, and what a library prints to stderr
    would be written into a database.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is `number`
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False, encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        buffer = io.BufferedWriter(_Output(1, "wb", closefd=False))
        sys.stdout = io.TextIOWrapper(
            buffer, encoding=sys.stdout.encoding, errors="replace", line_buffering=sys.stdout.isatty()
        )


def complain(text: str) -> None:
    """Print one line of what went wrong on stderr, unless nobody can read it."""
    with suppress(OSError, ValueError):
        print(f"samovar: {text}", file=sys.stderr, flush=True)


def discard_output() -> None:
    """Send what is still printed on stdout nowhere, so that the end of the process does not fail to flush it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def require_unicode_paths() -> None:
    """Run the program anew in Python's UTF-8 mode where paths would be ASCII, as in the C locale with PYTHONUTF8=0."""
    if sys.getfilesystemencoding().lower() in ("ascii", "us-ascii") and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - without a shell
