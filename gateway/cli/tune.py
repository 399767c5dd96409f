"""`samovar tune [--show] [--budget SECONDS] [--picture FILE] [--force]`: measure this machine and save the plan"""

from __future__ import annotations

import contextlib
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Final

from gateway.cli.arguments import Parser
from gateway.config.durations import parse_duration
from gateway.config.settings import Settings

SETTINGS: Final = ("model", "cores", "engines")
BUDGET: Final = 60.0


def arguments(parser: Parser) -> None:
    """Declare the options."""
    show = "print the plan that serve uses and what it has learned from its steps, without measuring"
    parser.add_argument("--show", action="store_true", help=show)
    time = f"measuring time, without loading; default {BUDGET:.0f}"
    parser.add_argument("--budget", type=_budget, default=BUDGET, metavar="SECONDS", help=time)
    force = "measure and save beside other processes, too, which make the plan slower than the machine"
    parser.add_argument("--force", action="store_true", help=force)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves to FILE (.svg or .png)")


def run(settings: Settings, options: Namespace) -> int:
    """Measure, print, save. Raises CommandError."""
    from gateway.cli import tuning  # imported late: it loads llama.cpp, which --help does not need

    return tuning.run(settings, options)


def _budget(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 1 <= (budget := parse_duration(text)) <= 3600:
            return budget
    raise ArgumentTypeError(f"{text} is not between 1 and 3600 seconds")
