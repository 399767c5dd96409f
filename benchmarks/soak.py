"""Half an hour of ordinary use: does a gateway end in the state in which it started?

python -m benchmarks.soak [--minutes 30] [--seed 0]: clients hold conversations with a gateway of two engines (the
tests' tiny model), some vanish, stall or flood, all leave, and idle engines are unloaded. The gateway is restarted a
few times. After each of these simulated days, while no client is connected, the benchmark records memory, open files,
bytes on disk, and the time to first token of that day. It fails if one of these grows by more than its bound, or if a
request was refused, because no fault is injected here.

Within each life of a gateway the last third of its days is compared with the first third, and the median life counts:
this detects leaks until a restart, while other work on the machine, which varies, affects both thirds. The last life is
compared with the first: this detects what outlives a restart. The first days of each life, with one-time loads and
caches, are left out.

Two quantities grow by design. Conversations are stored: expired ones are deleted at a gateway's start and once an hour,
so their bytes are divided by the number of stored turns. The cache grows until blocks that were unused for a minute,
the shortest configurable time, are evicted; the days before that are among those left out.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.command import leave_on_sigterm, option_parser
from benchmarks.faults import vandals
from benchmarks.faults.gateway import GatewayUnderTest
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.questions import scripts
from benchmarks.faults.scene import Scene
from benchmarks.faults.trial import CONTEXT, PEOPLE, SCRIPTS, SETTINGS
from benchmarks.machine import machine, revision
from tests.support.tiny_model import write_tiny_model

MINUTES: Final = 30.0
DAY: Final = 12.0
"""Seconds for which clients are connected."""
IDLE_UNLOAD: Final = 2
KEPT: Final = 60
"""Retention of unused data in seconds, the minimum: otherwise the store would grow during the whole run."""
FLIGHTY: Final = 0.1
RESTARTS: Final = 3
FIRST: Final = 5
"""Days of each life of a gateway that are left out: one minute, after which unused blocks are evicted."""
LEAST: Final = 3
"""Minimum number of remaining days per life, for a meaningful comparison."""
SHOWN: Final = 12
"""Number of days in the printed table."""
HEAD: Final = (
    "| minute | answers | first token, median | p95 | gateway | open files | cache | conversations | a turn "
    "| unloads |\n" + "|---" * 10 + "|"
)


@dataclass(frozen=True)
class Day:
    """The state of a gateway at the end of a day."""

    minute: float
    turns: int
    first: float
    """Median seconds to the first token."""
    late: float
    """95th percentile of the same."""
    resident: int
    files: int
    cache: int
    """Bytes on disk, including the write-ahead log."""
    conversations: int
    """Bytes in use in the file of conversations."""
    kept: int
    """Number of stored turns."""
    unloads: int

    @property
    def a_turn(self) -> float:
        """Bytes per stored turn."""
        return self.conversations / self.kept

    def __str__(self) -> str:
        """A row of the table."""
        times = f"{1000 * self.first:.0f} ms | {1000 * self.late:.0f} ms"
        sizes = f"{self.resident / 1e6:.1f} MB | {self.files} | {self.cache / 1e6:.1f} MB"
        kept = f"{self.conversations / 1e6:.1f} MB | {self.a_turn / 1e3:.1f} kB"
        return f"| {self.minute:.1f} | {self.turns} | {times} | {sizes} | {kept} | {self.unloads} |"


@dataclass(frozen=True)
class Bound:
    """How much a quantity may grow."""

    title: str
    of: Callable[[Day], float]
    within: float
    """Upper bound for the last third of a life relative to its first; the median of all lives is judged."""
    across: float | None
    """Upper bound for the last life relative to the first; None if other causes than the gateway would dominate."""
    why: str


BOUNDS: Final = (
    Bound(
        "memory", lambda day: day.resident, 1.10, 1.10,
        "arenas that Python retains grow by some per cent before they settle; 13 MB more would be some kB per answer",
    ),
    Bound(
        "open files", lambda day: day.files, 1.10, 1.10,
        "at rest they are the same files; two more may be reopened connections to a store",
    ),
    Bound(
        "cache on disk", lambda day: day.cache, 1.5, 1.5,
        "it holds the blocks of the last minute, which vary with the answers per minute",
    ),
    Bound(
        "conversations on disk, a turn", lambda day: day.a_turn, 1.25, 1.25,
        "the conversations repeat; partly filled pages make the difference",
    ),
    Bound(
        "first token, median", lambda day: day.first, 1.5, 2.0,
        "other work on the machine: unlikely to add half in most lives by chance, but possible in one",
    ),
    Bound(
        "first token, p95", lambda day: day.late, 2.0, None,
        "the same, and few answers per day are so late; from life to life, other work made it 4 times as long",
    ),
)  # fmt: skip
"""The quantities that are judged."""


class Soak:
    """A run with one gateway after the other and their days."""

    def __init__(self, scene: Scene) -> None:
        """Start the clock of a run in `scene`."""
        self._scene = scene
        self._began = time.monotonic()

    async def day(self) -> Day:
        """Run one day: clients connect, hold conversations and leave; then the engines are unloaded."""
        scene, ledger = self._scene, self._scene.ledger
        ledger.firsts.clear()
        before, until = ledger.row.turns, time.monotonic() + DAY
        vandal = scene.chance.choice([vandals.vanish, vandals.stall, vandals.flood])
        await asyncio.gather(*(talker.talk(until) for talker in scene.talkers), vandal(scene, 8))
        firsts = list(ledger.firsts)
        rest = await asyncio.to_thread(scene.gateway.rest)
        await asyncio.to_thread(scene.gateway.wait_for_unload)
        conversations, kept = kept_turns(scene.gateway.state / "conversations.db")
        ledger.row.leaks += bool(rest.entries or rest.orphans)
        return Day(
            minute=(time.monotonic() - self._began) / 60,
            turns=ledger.row.turns - before,
            first=statistics.median(firsts),
            late=statistics.quantiles(firsts, n=20)[-1],
            resident=scene.gateway.process.memory_info().rss,
            files=scene.gateway.process.num_fds(),
            cache=sum(path.stat().st_size for path in scene.gateway.state.glob("blocks.db*")),
            conversations=conversations,
            kept=kept,
            unloads=int(scene.gateway.metric("samovar_engine_unloads_total")),
        )

    async def life(self, until: float) -> list[Day]:
        """Start a gateway, run days until `until`, and stop it."""
        await asyncio.to_thread(self._scene.gateway.start)
        days = [await self.day()]
        while time.monotonic() < until:
            days.append(await self.day())
        if await asyncio.to_thread(self._scene.gateway.stop):
            self._scene.ledger.row.blame("the gateway did not end with exit code 0")
        return days


def kept_turns(path: Path) -> tuple[int, int]:
    """Return (bytes in use, turns) of a running gateway's file of conversations, including its write-ahead log."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
        page, pages, free = (
            file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return page * (pages - free), file.execute("SELECT count(*) FROM records").fetchone()[0]


def table(lives: Sequence[Sequence[Day]]) -> str:
    """Return a table of some of the days."""
    days = [day for life in lives for day in life[FIRST:] or life]
    return "\n".join([HEAD, *map(str, days[:: max(1, len(days) // SHOWN)])])


def judged(lives: Sequence[Sequence[Day]]) -> tuple[str, bool]:
    """Return the comparison of end and beginning, and whether all quantities are within their bounds."""
    lives = [life[FIRST:] for life in lives]
    if min(map(len, lives)) < LEAST:
        return f"Too short: a life must have {FIRST + LEAST} days to compare its end with its beginning.", False
    lines = [
        "| last over first | within a life | at most | from life to life | at most | reason for the bound |",
        "|---" * 6 + "|",
    ]
    passed = True
    for bound in BOUNDS:
        within = statistics.median(_growth(_third(life), _third(life[::-1]), bound.of) for life in lives)
        cells = [bound.title]
        for ratio, most in ((within, bound.within), (_growth(lives[0], lives[-1], bound.of), bound.across)):
            over = most is not None and ratio > most
            cells += [f"{ratio:.2f}" + (", too much" if over else ""), "" if most is None else f"{most:.2f}"]
            passed = passed and not over
        lines.append(f"| {' | '.join([*cells, bound.why])} |")
    return "\n".join(lines), passed


def _third(life: Sequence[Day]) -> Sequence[Day]:
    return life[: len(life) // 3]


def _growth(early: Sequence[Day], late: Sequence[Day], of: Callable[[Day], float]) -> float:
    before, after = (statistics.median(map(of, days)) for days in (early, late))
    return after / before


async def run(minutes: float, seed: int, folder: Path) -> tuple[list[list[Day]], Ledger]:
    """Run for `minutes` and return the days by the gateway's lives, and the ledger."""
    model = write_tiny_model(folder / "tiny.gguf", context=CONTEXT)
    settings = {**SETTINGS, "idle_unload": IDLE_UNLOAD, "cache_ttl": KEPT}
    gateway = GatewayUnderTest(folder / "state", model, log=folder / "log", clock=None, **settings)
    scene = Scene(gateway, Ledger({}), str(seed), folder)
    scene.people(PEOPLE, scripts(seed, SCRIPTS), flighty=FLIGHTY)
    soak, began = Soak(scene), time.monotonic()
    try:
        lives = [await soak.life(began + 60 * minutes * (n + 1) / (RESTARTS + 1)) for n in range(RESTARTS + 1)]
    finally:
        gateway.close()
    return lives, scene.ledger


def main() -> None:
    """Run and print; exit with 1 if something was lost, or grew beyond its bound."""
    parser = option_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    leave_on_sigterm()
    print(
        f"{options.minutes:g} minutes, seed {options.seed}, {RESTARTS} restarts, {machine()}, {revision()}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="samovar-soak-") as folder:
        lives, ledger = asyncio.run(run(options.minutes, options.seed, Path(folder)))
    comparison, passed = judged(lives)
    print(f"{table(lives)}\n\n{comparison}")
    row = ledger.row
    names = ("tokens lost", "doubled", "turns lost", "wrong", "stuck", "leaks")
    counts = ", ".join(f"{count} {name}" for count, name in zip(row.zeros, names, strict=True))
    print(f"\n{row.turns:,} answers: {counts}")
    for note, times in row.notes.most_common():
        print(f"    {times} × {note}", file=sys.stderr)
    sys.exit(0 if passed and not any(row.zeros) else 1)


if __name__ == "__main__":
    main()
