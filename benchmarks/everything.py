"""Run every benchmark that has figures, then write docs/benchmarks.md and print the result for each goal.

python -m benchmarks.everything [--from NAME]: takes about three hours on two cores, during which nothing else may run.
Measurements are stored, so that --from continues an interrupted run. `soak` and `faults` take long and judge
themselves, and `schemas` needs a data set, so they are run by name.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from benchmarks import report
from benchmarks.command import leave_on_sigterm, option_parser
from benchmarks.figures import Figure, published
from benchmarks.machine import machine, revision

RUNS: Final = (
    "stream",
    "stream --model standin --streams 2",
    "memory",
    "memory --model embedded",
    "prompts --rival",
    "sampling",
    "overhead",
    "hop",
    "masks",
    "attacks",
    "compare",
    "prompts_first",
    "crowd",
    "returning",
    "returning --cache redis",
    "returning --model embedded",
    "returning --model embedded --cache redis",
    "writeback --streams 2 4",
    "writeback --model embedded --streams 8",
    "blocks",
    "ahead",
    "coldstart",
    "reproducible",
    "speculation",
    "cancel",
    "fairness",
    "adapting",
    "idle",
    "scrape",
    "page",
    "fuzz",
)
"""Names and arguments, ordered so that a benchmark comes after those on whose figures it depends."""
SECONDS: Final = 5400.0
"""Timeout of one benchmark; the comparison takes an hour."""


def run(command: str) -> bool:
    """Run one of RUNS and return whether it succeeded within its timeout."""
    print(f"\n{time.strftime('%H:%M')} {command}", flush=True)
    name, *arguments = command.split()
    with subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}", *arguments]) as process:
        try:
            return process.wait(SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.terminate()


def verdicts(figures: Sequence[Figure], revision: str) -> list[str]:
    """Return one line for each goal that was measured at `revision`, missed ones last."""
    judged = [figure for figure in figures if figure.met is not None and figure.revision == revision]
    return [f"{figure.benchmark:12} {figure}" for figure in sorted(judged, key=lambda figure: not figure.met)]


def main() -> None:
    """Run all, write the report and print the verdicts; exit with 1 if one failed."""
    parser = option_parser(__doc__)
    names = list(dict.fromkeys(command.split()[0] for command in RUNS))
    parser.add_argument("--from", dest="first", choices=names, default=names[0], help="start with this benchmark")
    options = parser.parse_args()
    leave_on_sigterm()
    now = revision()
    print(machine(), now)
    if now.endswith("+"):
        raise SystemExit("commit your changes first: the report leaves out figures of uncommitted code")
    first = next(i for i, command in enumerate(RUNS) if command.split()[0] == options.first)
    failed = [command for command in RUNS[first:] if not run(command)]
    report.write()
    print(*verdicts(list(published().values()), now), sep="\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
