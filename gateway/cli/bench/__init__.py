"""`samovar bench [--quick] [--output DIR]`: measure memory, latency, start-up and throughput of this machine"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Final

from gateway.cli.arguments import Parser
from gateway.config.settings import Settings

SETTINGS: Final = ("model", "cores", "engines", "memory", "engine_memory", "context", "cache_key")


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--quick", action="store_true", help="measure everything once, in about a minute, without spread"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write bench.md, .json, .png and .svg to DIR")


def run(settings: Settings, options: Namespace) -> int:
    """Measure and print the results. Raises CommandError."""
    from gateway.cli.bench import session  # imported late: it loads llama.cpp, which --help does not need

    return session.run(settings, quick=options.quick, output=options.output)
