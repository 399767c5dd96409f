"""Handling of standard streams that are closed, full or of a limited encoding, and of paths in the C locale."""

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
    """Writing to stdout failed. Not an OSError, so that no handler takes it for the failure of another file."""

    def __init__(self, number: int | None, reason: str) -> None:
        """Create the error from the operating system's `number` (errno) and `reason`."""
        super().__init__(f"the output can't be written: {reason}")
        self.unread = number == errno.EPIPE
        """Whether the reader closed the pipe, as `head` does, and needs no message."""


class _Output(io.FileIO):
    """File descriptor 1; raises OutputError instead of OSError."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error.errno, error.strerror or "unknown error") from error


def prepare() -> None:
    """Open closed standard streams on /dev/null, and print `?` for characters that a stream's encoding lacks.

    Otherwise the next opened file would get the descriptor of a closed stream, and a library's output to stderr would
    be written into a database.
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


def print_error(text: str) -> None:
    """Print an error in one line on stderr; do nothing if stderr cannot be written."""
    with suppress(OSError, ValueError):
        print(f"samovar: {text}", file=sys.stderr, flush=True)


def discard_output() -> None:
    """Redirect stdout to /dev/null, so that the final flush of the process does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def require_unicode_paths() -> None:
    """Re-execute in Python's UTF-8 mode if paths would be ASCII, as in the C locale with PYTHONUTF8=0."""
    if sys.getfilesystemencoding().lower() in ("ascii", "us-ascii") and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - without a shell
