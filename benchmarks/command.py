"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import signal
import sys

from benchmarks.loads import MODELS
from benchmarks.machine import machine


def option_parser(description: str | None, *, model: str = "") -> argparse.ArgumentParser:
    """Return a parser that shows `description`, with `--model` if the benchmark has a default `model`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        parser.add_argument("--model", choices=MODELS, default=model)
    return parser


def start_benchmark(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options, print the machine, and let SIGTERM end the program like Ctrl-C, which stops its servers."""
    options = parser.parse_args()
    leave_on_sigterm()
    print(machine(), flush=True)
    return options


def leave_on_sigterm() -> None:
    """Let SIGTERM end this program like Ctrl-C, so that it stops the processes that it started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
