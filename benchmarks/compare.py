"""Samovar compared with llama-server: the same llama.cpp, model, cores and conversations, in alternation.

python -m benchmarks.compare [--load chat] [--model standin] [--streams 2 4] [--pairs 5]: measures, prints, and stores
the pairs in the cache folder. Without arguments it prints the expected duration, measures the whole table and writes
docs/benchmarks.md and its plot. A table can be measured in parts: --report writes them from all pairs so far.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psutil
import uvloop

from benchmarks import report
from benchmarks.clients import ChatCompletions, Samovar, Side, TurnFailedError
from benchmarks.command import leave_on_sigterm, option_parser
from benchmarks.loads import LOADS, MODELS, Load, Subject, subject
from benchmarks.machine import cores, engine_version, machine, revision, single_row
from benchmarks.results import Medians, Pair, Summary, pair, store
from benchmarks.rival import RivalError
from benchmarks.runs import run, warm_up
from benchmarks.servers import llama_server, samovar, tune
from gateway.cli.figures import figure
from gateway.cli.launcher import LaunchError
from gateway.config.other_load import BUSY

STREAMS: Final = (1, 2, 4, 8, 16)
ROWS: Final = (("standin", "chat"), ("standin", "document"), ("embedded", "chat"))
PAIRS: Final = 5
RETRIES: Final = 3
"""Additional pairs to replace pairs that other processes disturbed."""
SECONDS: Final = {
    ("standin", "chat"): (8, 15, 28, 38, 45),
    ("standin", "document"): (6, 12, 20, 30, 55),
    ("embedded", "chat"): (4, 6, 9, 14, 22),
}
"""Approximate duration of one run of one side, by STREAMS, on two cores."""


async def compare(
    ours: Side, theirs: Side, load: Load, subject: Subject, *, streams: int, pairs: int, tuned: bool
) -> list[Pair]:
    """Measure pairs in the order ours, theirs, theirs, ours, …, each with its own texts. Raises TurnFailedError."""
    seed = time.time_ns()
    for side in (ours, theirs):
        await warm_up(side, load, subject, streams=streams)
    found: list[Pair] = []
    for number in range(pairs + RETRIES):
        sides = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        runs = {}
        for side in sides:
            await wait_for_quiet()
            runs[side] = await run(side, load, subject, streams=streams, seed=seed + number)
        both = pair(subject.name, load.name, streams, runs[ours], runs[theirs], tuned=tuned)
        if any(each.disturbed for each in runs.values()):
            busy = " and ".join(f"{each.others:.2f}" for each in runs.values())
            speeds = f"{both.ours.speed:.1f} against {both.theirs.speed:.1f} tok/s"
            print(f"    left out: {speeds} while other processes kept {busy} cores busy", flush=True)
            continue
        found.append(both)
        store(found[-1])
        if len(found) == pairs:
            break
    return found


async def wait_for_quiet() -> None:
    """Wait until other processes are idle, for ten seconds at most."""
    psutil.cpu_percent(None)
    for _ in range(10):
        await asyncio.sleep(1)
        if psutil.cpu_percent(None) / 100 * cores() <= BUSY:
            return


def measure(subject: Subject, load: Load, streams: int, pairs: int, tuned: Path | None) -> list[Pair]:
    """Start both servers, compare them, stop both. Raises LaunchError, RivalError, TurnFailedError."""
    with ExitStack() as stack:
        theirs = stack.enter_context(llama_server(subject.path, streams=streams))
        ours = stack.enter_context(samovar(subject.path, tuned=tuned))
        sides = Samovar(ours), ChatCompletions(theirs, cache_prompt=True)
        return uvloop.run(compare(*sides, load, subject, streams=streams, pairs=pairs, tuned=bool(tuned)))


def lines(summary: Summary) -> Iterator[str]:
    """Yield a row as lines for the terminal."""
    first = summary.pairs[0]
    least, most = summary.spread
    yield (
        f"{first.load} x {first.streams}, {first.model}: {summary.ratio:.2f} ({least:.2f} to {most:.2f}), "
        f"median of {len(summary.pairs)} pairs"
    )
    for name, side in (("Samovar", "ours"), ("llama-server", "theirs")):
        yield f"    {name:13}{_figures(summary.medians(side))}"
        if not all(getattr(pair, side).exact for pair in summary.pairs):
            yield f"    {name:13}some answers were shorter than requested"


def _figures(medians: Medians) -> str:
    first = " / ".join(f"{seconds:.2f}" for seconds in medians.first)
    return (
        f"{medians.speed:6.1f} tok/s, first token {first} s, between tokens {figure(medians.gap * 1000)} ms "
        f"(p99 {figure(medians.gap_p99 * 1000)}), {medians.cached:.0%} of prompts cached, "
        f"client {medians.client:.1%} of a core"
    )


def estimate(rows: list[tuple[str, str]], streams: list[int], pairs: int) -> float:
    """Estimate the seconds that these rows take; more than 16 streams count as 16."""
    each = [SECONDS[row][min(4, (n - 1).bit_length())] for row in rows for n in streams]
    return sum(2 * (pairs + 0.2) * seconds + 6 for seconds in each)


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, help="one model (default: both)")
    parser.add_argument("--load", choices=LOADS, help="one load (default: all)")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="concurrent conversations")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="interleaved pairs per row")
    parser.add_argument("--tuned", action="store_true", help="let `samovar tune` measure this machine first, once")
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md even after a part of the table")
    options = parser.parse_args()
    whole = not options.model and not options.load and options.streams is STREAMS
    leave_on_sigterm()
    rows = [row for row in ROWS if options.model in (None, row[0]) and options.load in (None, row[1])]
    print(f"{machine()}, llama-cpp-python {engine_version()}, Samovar {revision()}", flush=True)
    minutes = estimate(rows, options.streams, options.pairs) / 60
    print(f"{len(rows) * len(options.streams)} rows, about {minutes:.0f} minutes on two cores", flush=True)
    try:
        for model, load in rows:
            asked = subject(model)
            step = single_row(asked.path)
            print(f"{model}, {load}: a step of one row takes {step * 1000:.1f} ms", flush=True)
            tuned = tune(asked.path) if options.tuned else None
            for streams in options.streams:
                pairs = measure(asked, LOADS[load], streams, options.pairs, tuned)
                print(*(lines(Summary(pairs)) if pairs else ["    no undisturbed pair"]), sep="\n", flush=True)
    except (LaunchError, RivalError, TurnFailedError, ExceptionGroup) as error:
        raise SystemExit(str(error)) from error
    if options.report or whole:
        report.write()


if __name__ == "__main__":
    main()
