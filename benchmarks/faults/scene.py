"""One fault's surroundings: a house of its own, its clients, and what else of the world it needs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.faults.house import House
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.questions import Question
from benchmarks.faults.talker import Talker
from tests.redis_server import RedisServer

DISK: Final = 64 << 20
"""Bytes of the small disk: the cache's least bound is as much, so that it can be filled by the cache as well."""


@dataclass
class Scene:
    """Everything that a fault may lay hands on."""

    house: House
    ledger: Ledger
    seed: str
    """Whoever draws has a generator of its own, made of this and its name: no one's draws depend on another's speed."""
    folder: Path
    redis: RedisServer | None = None
    clock: Path | None = None
    disk: Path | None = None
    """A file system of the house's own, where this process may make one."""
    talkers: list[Talker] = field(default_factory=list)
    chance: random.Random = field(init=False)
    """Draws what is broken, and after which pause."""
    mischief: random.Random = field(init=False)
    """Draws how long vandals stay."""

    def __post_init__(self) -> None:
        """Give everybody a generator."""
        self.chance, self.mischief = self.draw("injury"), self.draw("vandals")

    def draw(self, name: str) -> random.Random:
        """The generator of whoever has this name."""
        return random.Random(f"{self.seed} {name}")

    def done(self) -> None:
        """It was inflicted once more."""
        self.ledger.row.inflicted += 1

    async def pause(self, least: float, most: float, until: float) -> bool:
        """Wait for a while; False when it is `until` already."""
        seconds = min(self.chance.uniform(least, most), until - time.monotonic())
        if seconds > 0:
            await asyncio.sleep(seconds)
        return time.monotonic() < until

    def people(self, count: int, scripts: Sequence[Sequence[Question]], *, flighty: float = 0.0) -> list[Talker]:
        """So many clients, who talk until they are told to end."""
        draws = [self.draw(f"talker {number}") for number in range(count)]
        self.talkers = [Talker(self.house.address, self.ledger, scripts, draw) for draw in draws]
        for talker in self.talkers:
            talker.flighty = flighty
        return self.talkers


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system that holds little, mounted on `folder`; None where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder)]
    try:
        yield None if subprocess.run(command, capture_output=True, check=False).returncode else folder
    finally:
        if folder.is_mount():  # also when it was interrupted just after it was mounted
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)
