"""`samovar bench [--quick] [--output DIR]`: memory, latency, start-up and load of this machine"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Final

from gateway.cli.arguments import Parser
from gateway.config.settings import Settings

SETTINGS: Final = ("model", "cores", "engines", "engine_memory", "context", "cache_key")


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--quick", action="store_true", help="each thing once: about a minute, and no spread")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write bench.md, .json, .png and .svg there, too")


def run(settings: Settings, options: Namespace) -> int:
    """Measure and print. Raises CommandError."""
    from gateway.cli.bench import session  # late: it loads llama.cpp, for which help need not wait

    return session.run(settings, quick=options.quick, output=options.output)
