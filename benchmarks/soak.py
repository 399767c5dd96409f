"""Half an hour of ordinary days: does a gateway end as it began?

python -m benchmarks.soak [--minutes 30] [--seed 0]: clients come, hold conversations with a gateway of two engines (the
tests' tiny model), some vanish, stall or flood, all leave, and idle engines are unloaded; a few times the gateway is
restarted. After each of these days it is looked at while nobody is there: memory, open files, bytes on disk, and how
long a first token took that day. It fails when one of these ends higher than it began, by more than its bound; and when
anybody was refused, as nothing is broken here.

Like is compared with like. Within each life of a gateway the last third of its days is held against the first third,
and the median life counts: what leaks until a restart is seen there, and other work on the machine, which comes and
goes, meets both. And the last life is held against the first: what outlives a restart is seen there. The first days of
each life, which load and cache what is loaded once, are left out.

Two things are meant to grow. Conversations are kept: they go at a gateway's start and once an hour, when they are past
their time. So their bytes are divided by the turns that are there. The cache grows until what nobody used for a minute,
the shortest time that can be set, begins to go; the days before that are among those that are left out.
"""

from __future__ import annotations

import argparse
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

from benchmarks.faults import vandals
from benchmarks.faults.house import House
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.questions import scripts
from benchmarks.faults.scene import Scene
from benchmarks.faults.trial import CONTEXT, PEOPLE, SCRIPTS, SETTINGS
from benchmarks.machine import machine, revision
from benchmarks.servers import leave_on_sigterm
from tests.tiny_model import write_tiny_model

MINUTES: Final = 30.0
DAY: Final = 12.0
"""Seconds for which people are there."""
IDLE_UNLOAD: Final = 2
KEPT: Final = 60
"""Seconds that what nobody uses is kept, the least that there is: or the store would grow for as long as it lasts."""
FLIGHTY: Final = 0.1
RESTARTS: Final = 3
FIRST: Final = 5
"""Days of each life of a gateway that are left out: a minute, after which what nobody used begins to go."""
LEAST: Final = 3
"""Days that must be left of each life, or nothing can be told."""
SHOWN: Final = 12
"""Days that are shown."""
HEAD: Final = (
    "| minute | answers | first token, median | p95 | gateway | open files | cache | conversations | a turn "
    "| unloads |\n" + "|---" * 10 + "|"
)


@dataclass(frozen=True)
class Day:
    """What a gateway was like when a day was over."""

    minute: float
    turns: int
    first: float
    """Median seconds to the first token."""
    late: float
    """Likewise, which 95 of 100 stay under."""
    resident: int
    files: int
    cache: int
    """Bytes on disk, the write-ahead log among them."""
    conversations: int
    """Bytes that are in use in their file."""
    kept: int
    """Turns that are there."""
    unloads: int

    @property
    def a_turn(self) -> float:
        """Bytes of a turn that is kept."""
        return self.conversations / self.kept

    def __str__(self) -> str:
        """A row of the table."""
        times = f"{1000 * self.first:.0f} ms | {1000 * self.late:.0f} ms"
        sizes = f"{self.resident / 1e6:.1f} MB | {self.files} | {self.cache / 1e6:.1f} MB"
        kept = f"{self.conversations / 1e6:.1f} MB | {self.a_turn / 1e3:.1f} kB"
        return f"| {self.minute:.1f} | {self.turns} | {times} | {sizes} | {kept} | {self.unloads} |"


@dataclass(frozen=True)
class Bound:
    """How much higher something may end than it began."""

    what: str
    of: Callable[[Day], float]
    within: float
    """The last third of a life over its first, at most; the median of all lives is judged."""
    across: float | None
    """The last life over the first, at most; None where that would tell of other things than the gateway."""
    why: str


BOUNDS: Final = (
    Bound(
        "memory", lambda day: day.resident, 1.10, 1.10,
        "arenas that Python keeps go on settling by some per cent; 13 MB more would be some kB of each answer",
    ),
    Bound(
        "open files", lambda day: day.files, 1.10, 1.10,
        "at rest they are the same ones: two more may be connections to a store that were made anew",
    ),
    Bound(
        "cache on disk", lambda day: day.cache, 1.5, 1.5,
        "it holds the last minute's, which is more when more is answered in a minute",
    ),
    Bound(
        "conversations on disk, a turn", lambda day: day.a_turn, 1.25, 1.25,
        "the same conversations all the time; pages that are partly filled make the difference",
    ),
    Bound(
        "first token, median", lambda day: day.first, 1.5, 2.0,
        "other work on the machine: half as long again hardly in most lives by chance, but in one of them",
    ),
    Bound(
        "first token, p95", lambda day: day.late, 2.0, None,
        "the same, and a day has few that are so late; from life to life, work beside it made it 4 times as long",
    ),
)  # fmt: skip
"""What is judged."""


class Soak:
    """One gateway, its people, and its days."""

    def __init__(self, scene: Scene) -> None:
        """Begin now."""
        self._scene = scene
        self._began = time.monotonic()

    async def day(self) -> Day:
        """People come, talk and leave; then the engines are unloaded."""
        scene, ledger = self._scene, self._scene.ledger
        ledger.firsts.clear()
        before, until = ledger.row.turns, time.monotonic() + DAY
        vandal = scene.chance.choice([vandals.vanish, vandals.stall, vandals.flood])
        await asyncio.gather(*(talker.talk(until) for talker in scene.talkers), vandal(scene, 8))
        firsts = list(ledger.firsts)
        rest = await asyncio.to_thread(scene.house.rest)
        await asyncio.to_thread(scene.house.wait_for_unload)
        conversations, kept = kept_turns(scene.house.state / "conversations.db")
        ledger.row.leaks += bool(rest.entries or rest.orphans)
        return Day(
            minute=(time.monotonic() - self._began) / 60,
            turns=ledger.row.turns - before,
            first=statistics.median(firsts),
            late=statistics.quantiles(firsts, n=20)[-1],
            resident=scene.house.gateway.memory_info().rss,
            files=scene.house.gateway.num_fds(),
            cache=sum(path.stat().st_size for path in scene.house.state.glob("blocks.db*")),
            conversations=conversations,
            kept=kept,
            unloads=int(scene.house.metric("samovar_engine_unloads_total")),
        )

    async def life(self, until: float) -> list[Day]:
        """Days of one gateway, which is started and stopped again."""
        await asyncio.to_thread(self._scene.house.start)
        days = [await self.day()]
        while time.monotonic() < until:
            days.append(await self.day())
        if await asyncio.to_thread(self._scene.house.stop):
            self._scene.ledger.row.blame("the gateway did not end with exit code 0")
        return days


def kept_turns(path: Path) -> tuple[int, int]:
    """Bytes in use and turns of a running gateway's file of conversations, its write-ahead log included."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
        page, pages, free = (
            file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return page * (pages - free), file.execute("SELECT count(*) FROM records").fetchone()[0]


def told(lives: Sequence[Sequence[Day]]) -> str:
    """Some of the days."""
    days = [day for life in lives for day in life[FIRST:] or life]
    return "\n".join([HEAD, *map(str, days[:: max(1, len(days) // SHOWN)])])


def judged(lives: Sequence[Sequence[Day]]) -> tuple[str, bool]:
    """How the end compares with the beginning, and whether all of it is within its bounds."""
    lives = [life[FIRST:] for life in lives]
    if min(map(len, lives)) < LEAST:
        return f"Too short: a life must have {FIRST + LEAST} days, or its end cannot be told from its beginning.", False
    lines = [
        "| last over first | within a life | at most | from life to life | at most | why so much |",
        "|---" * 6 + "|",
    ]
    well = True
    for bound in BOUNDS:
        within = statistics.median(_growth(_third(life), _third(life[::-1]), bound.of) for life in lives)
        cells = [bound.what]
        for ratio, most in ((within, bound.within), (_growth(lives[0], lives[-1], bound.of), bound.across)):
            over = most is not None and ratio > most
            cells += [f"{ratio:.2f}" + (", too much" if over else ""), "" if most is None else f"{most:.2f}"]
            well = well and not over
        lines.append(f"| {' | '.join([*cells, bound.why])} |")
    return "\n".join(lines), well


def _third(life: Sequence[Day]) -> Sequence[Day]:
    return life[: len(life) // 3]


def _growth(early: Sequence[Day], late: Sequence[Day], of: Callable[[Day], float]) -> float:
    before, after = (statistics.median(map(of, days)) for days in (early, late))
    return after / before


async def run(minutes: float, seed: int, folder: Path) -> tuple[list[list[Day]], Ledger]:
    """All days, by the life of the gateway in which they fell."""
    model = write_tiny_model(folder / "tiny.gguf", context=CONTEXT)
    settings = {**SETTINGS, "idle_unload": IDLE_UNLOAD, "cache_ttl": KEPT}
    house = House(folder / "state", model, log=folder / "log", clock=None, **settings)
    scene = Scene(house, Ledger({}), str(seed), folder)
    scene.people(PEOPLE, scripts(seed, SCRIPTS), flighty=FLIGHTY)
    soak, began = Soak(scene), time.monotonic()
    try:
        lives = [await soak.life(began + 60 * minutes * (n + 1) / (RESTARTS + 1)) for n in range(RESTARTS + 1)]
    finally:
        house.close()
    return lives, scene.ledger


def main() -> None:
    """Run, print, and fail when something was lost, or ends higher than it began."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    comparison, well = judged(lives)
    print(f"{told(lives)}\n\n{comparison}")
    row = ledger.row
    names = ("tokens lost", "doubled", "turns lost", "wrong", "stuck", "leaks")
    counts = ", ".join(f"{count} {name}" for count, name in zip(row.zeros, names, strict=True))
    print(f"\n{row.turns:,} answers: {counts}")
    for note, times in row.notes.most_common():
        print(f"    {times} × {note}", file=sys.stderr)
    sys.exit(0 if well and not any(row.zeros) else 1)


if __name__ == "__main__":
    main()
