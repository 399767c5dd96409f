"""Fault injection under load, with the losses of each fault.

python -m benchmarks.faults [--minutes 10] [--seed 0] [--only engines,redis]: six clients hold conversations with a
gateway of two engines (the tests' tiny model, real llama.cpp) while one fault after another is injected, each for its
share of the time. Prints one row per fault, and fails if a figure that must be 0 is not.

With the same seed each client asks the same questions in the same order, and the same faults are injected in the same
order with the same pauses. How many fit into the time, and what they interrupt, varies.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.command import leave_on_sigterm, option_parser
from benchmarks.faults.injection import FAULTS
from benchmarks.faults.ledger import Row
from benchmarks.faults.trial import CONTEXT, trial
from benchmarks.machine import machine, revision
from tests.support.tiny_model import write_tiny_model

MINUTES: Final = 10.0
HEAD: Final = (
    "| fault | times | turns | tokens lost | doubled | turns lost | wrong | stuck | leaks | texts changed | refused "
    "| resumed | cut off, kept |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(title: str, row: Row) -> str:
    """Return a row of the table."""
    share = f"{100 * row.changed / row.compared:.1f} % of {row.compared:,}" if row.compared else ""
    cut = f"{row.cut}" + (f", {row.unkept} not" if row.unkept else "") + (f"; {row.due} due" if row.due else "")
    times = f"{row.injected:,}" + (f", {row.for_good} of them for good" if row.for_good else "")
    counts = [f"{count:,}" for count in (row.turns, *row.zeros)]
    return "| " + " | ".join([title, times, *counts, share, f"{row.refused:,}", f"{row.resumed:,}", cut]) + " |"


async def run(names: Sequence[str], *, minutes: float, seed: int) -> bool:
    """Inject these faults, each for its share of the time; return whether all figures that must be 0 are 0."""
    texts: dict[str, str] = {}
    passed = True
    seconds = 60 * minutes / sum(FAULTS[name].share for name in names)
    with tempfile.TemporaryDirectory(prefix="samovar-faults-") as folder:
        model = write_tiny_model(Path(folder) / "tiny.gguf", context=CONTEXT)
        for number, name in enumerate(names):
            place = Path(folder) / f"{number} {name}"
            row = await trial(name, model, place, seconds=seconds * FAULTS[name].share, seed=seed, texts=texts)
            print(line(FAULTS[name].title, row), flush=True)
            for note, times in row.notes.most_common():
                print(f"    {times} × {note}", file=sys.stderr, flush=True)
            passed = passed and not any(row.zeros)
    return passed


def main() -> None:
    """Run and print; exit with 1 if something was lost."""
    parser = option_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="total duration of all faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"a list, separated by commas, of: {', '.join(FAULTS)}")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else ["nothing", *FAULTS]  # twice: its texts are the reference
    if unknown := set(names) - set(FAULTS):
        parser.error(f"--only: unknown fault {', '.join(sorted(unknown))}; choose from {', '.join(FAULTS)}")
    leave_on_sigterm()
    began = time.monotonic()
    print(f"{options.minutes:g} minutes, seed {options.seed}, {machine()}, {revision()}\n\n{HEAD}", flush=True)
    passed = asyncio.run(run(names, minutes=options.minutes, seed=options.seed))
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes including starts, recovery and audits", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
