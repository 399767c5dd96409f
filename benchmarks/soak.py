"""Half an hour of ordinary days: does a gateway end as it began?

python -m benchmarks.soak [--minutes 30] [--seed 0]: clients come, hold conversations with a gateway of two engines (the
tests' tiny model), some vanish, stall or flood, all leave, and idle engines are unloaded; a few times the gateway is
restarted. After each of these days it is looked at while nobody is there: memory, open files, bytes on disk, and how
long a first token took that day. The first days, which load and cache what is loaded once, are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
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
FIRST: Final = 2
"""Days of each life of a gateway that are left out."""
SHOWN: Final = 12
"""Days that are shown."""
HEAD: Final = (
    "| minute | answers | first token, median | p95 | gateway | open files | on disk | unloads |\n" + "|---" * 8 + "|"
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
    stored: int
    """Bytes on disk."""
    unloads: int

    def __str__(self) -> str:
        """A row of the table."""
        times = f"{1000 * self.first:.0f} ms | {1000 * self.late:.0f} ms"
        sizes = f"{self.resident / 1e6:.1f} MB | {self.files} | {self.stored / 1e6:.1f} MB"
        return f"| {self.minute:.1f} | {self.turns} | {times} | {sizes} | {self.unloads} |"


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
        ledger.row.leaks += bool(rest.entries or rest.orphans)
        return Day(
            minute=(time.monotonic() - self._began) / 60,
            turns=ledger.row.turns - before,
            first=statistics.median(firsts),
            late=statistics.quantiles(firsts, n=20)[-1],
            resident=scene.house.gateway.memory_info().rss,
            files=scene.house.gateway.num_fds(),
            stored=sum(path.stat().st_size for path in scene.house.state.glob("*.db*")),
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


def told(lives: list[list[Day]]) -> str:
    """The table, and how the end compares with the beginning."""
    days = [day for life in lives for day in life[FIRST:] or life]
    shown = days[:: max(1, len(days) // SHOWN)]
    third = max(1, len(days) // 3)
    early, late = days[:third], days[-third:]
    lines = [HEAD, *map(str, shown), "", "Medians of the last third over those of the first:"]
    for what, name in (
        ("memory", "resident"), ("open files", "files"), ("on disk", "stored"), ("first token", "first"),
    ):  # fmt: skip
        before, after = (statistics.median(getattr(day, name) for day in part) for part in (early, late))
        lines.append(f"- {what}: {after / before:.2f}")
    return "\n".join(lines)


async def run(minutes: float, seed: int, folder: Path) -> tuple[list[list[Day]], Ledger]:
    """All days, by the life of the gateway in which they fell."""
    model = write_tiny_model(folder / "tiny.gguf", context=CONTEXT)
    settings = {**SETTINGS, "idle_unload": IDLE_UNLOAD, "cache_ttl": KEPT}
    house = House(folder / "state", model, log=folder / "log", clock=None, **settings)
    scene = Scene(house, Ledger({}), random.Random(seed), folder)
    scene.people(PEOPLE, scripts(seed, SCRIPTS), flighty=FLIGHTY)
    soak, began = Soak(scene), time.monotonic()
    try:
        lives = [await soak.life(began + 60 * minutes * (n + 1) / (RESTARTS + 1)) for n in range(RESTARTS + 1)]
    finally:
        await asyncio.to_thread(house.stop)
    return lives, scene.ledger


def main() -> None:
    """Run, print, and fail when something was lost."""
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
    print(told(lives))
    row = ledger.row
    names = ("tokens lost", "doubled", "turns lost", "wrong", "stuck", "leaks")
    counts = ", ".join(f"{count} {name}" for count, name in zip(row.zeros, names, strict=True))
    print(f"\n{row.turns:,} answers: {counts}")
    for note, times in row.notes.most_common():
        print(f"    {times} × {note}", file=sys.stderr)
    sys.exit(1 if any(row.zeros) else 0)


if __name__ == "__main__":
    main()
