"""The program `samovar`, also as `python -m gateway`: Ctrl-C ends it without a traceback from the first import on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Final

INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit code of shells for a program that Ctrl-C ended."""


def _quit(_: int, __: FrameType | None) -> None:
    os._exit(INTERRUPTED)  # nothing is open yet; SystemExit could be caught by a module that is being imported


def main() -> int:
    """Import and run the command line; return its exit code."""
    signal.signal(signal.SIGINT, _quit)
    from gateway.cli import main as run  # takes up to 0.4 s

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
