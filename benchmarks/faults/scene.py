"""The surroundings of one fault: its server, its clients, and what else it needs."""

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

from benchmarks.faults.gateway import GatewayUnderTest
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.questions import Question
from benchmarks.faults.talker import Talker
from tests.support.redis_server import RedisServer

DISK: Final = 64 << 20
"""Size of the small disk in bytes: the minimum bound of the cache, so that the cache can fill it as well."""


@dataclass
class Scene:
    """Everything that a fault may affect."""

    gateway: GatewayUnderTest
    ledger: Ledger
    seed: str
    """Seed of the random generators, one per name, so that no draws depend on the speed of others."""
    folder: Path
    redis: RedisServer | None = None
    clock: Path | None = None
    disk: Path | None = None
    """A separate file system for the server, if this process may mount one."""
    talkers: list[Talker] = field(default_factory=list)
    chance: random.Random = field(init=False)
    """Selects faults and the pauses between them."""
    mischief: random.Random = field(init=False)
    """Selects how long vandals stay connected."""

    def __post_init__(self) -> None:
        """Create the generators."""
        self.chance, self.mischief = self.draw("injury"), self.draw("vandals")

    def draw(self, name: str) -> random.Random:
        """Return the random generator for `name`."""
        return random.Random(f"{self.seed} {name}")

    def done(self) -> None:
        """Count one injection."""
        self.ledger.row.injected += 1

    async def pause(self, least: float, most: float, until: float) -> bool:
        """Wait for a random time; return False once `until` has passed."""
        seconds = min(self.chance.uniform(least, most), until - time.monotonic())
        if seconds > 0:
            await asyncio.sleep(seconds)
        return time.monotonic() < until

    def people(self, count: int, scripts: Sequence[Sequence[Question]], *, flighty: float = 0.0) -> list[Talker]:
        """Create `count` clients, which hold conversations with `scripts`."""
        draws = [self.draw(f"talker {number}") for number in range(count)]
        self.talkers = [Talker(self.gateway.address, self.ledger, scripts, draw) for draw in draws]
        for talker in self.talkers:
            talker.flighty = flighty
        return self.talkers


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small file system on `folder`; yield None if that is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder)]
    try:
        yield None if subprocess.run(command, capture_output=True, check=False).returncode else folder
    finally:
        if folder.is_mount():  # also after an interrupt just after mounting
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)
