"""One fault from start to end: server, clients, fault, recovery, and an audit of acknowledged answers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.faults.gateway import GatewayUnderTest
from benchmarks.faults.injection import FAULTS, Fault
from benchmarks.faults.ledger import Ledger, Row
from benchmarks.faults.questions import scripts
from benchmarks.faults.scene import Scene, small_disk
from tests.support.redis_server import RedisServer

SCRIPTS: Final = 12
PEOPLE: Final = 6
CALM_SECONDS: Final = 1.0
"""How long clients are answered before the fault, and after it until its consequences are over."""
HEAL_SECONDS: Final = 90.0
"""Timeout of the recovery; an engine that crashed often is retried after half a minute, and so is a store."""
CONTEXT: Final = 2048
SETTINGS: Final = {
    "context": CONTEXT,
    "engines": 2,
    "cores": 2,
    "resume_grace": 5,  # longer than any client here stays away, and the maximum life of answers that vandals abandon
    "messages_per_minute": 1_000_000,
}


async def trial(
    name: str,
    model: Path,
    folder: Path,
    *,
    seconds: float,
    seed: int,
    texts: dict[str, str],
    count: int = PEOPLE,
    calm: float = CALM_SECONDS,
) -> Row:
    """Inject the fault `name` for `seconds` while `count` clients hold conversations.

    They also hold them for `calm` seconds before the fault, and again until nothing was refused for as long. `texts`
    holds undisturbed answers by the key of their question; new ones are added.
    """
    fault = FAULTS[name]
    with _scene(name, fault, model, folder, seed=seed, texts=texts) as scene:
        people = scene.people(count, scripts(seed, SCRIPTS), flighty=fault.flighty)
        await _talk(scene, calm)
        before = await asyncio.to_thread(scene.gateway.rest)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as talking:  # an interrupt does not wait for their answers
            for talker in people:
                talking.create_task(talker.talk(until))
            await fault.inject(scene, until)
        await _heal(scene, calm)
        for leak in (await asyncio.to_thread(scene.gateway.rest)).leaks(before):
            scene.ledger.row.leaks += 1
            scene.ledger.row.notes[leak] += 1
        await scene.ledger.audit(scene.gateway.url)
        if await asyncio.to_thread(scene.gateway.stop):
            scene.ledger.row.blame("the gateway did not end with exit code 0")
        return scene.ledger.row


@contextlib.contextmanager
def _scene(name: str, fault: Fault, model: Path, folder: Path, *, seed: int, texts: dict[str, str]) -> Iterator[Scene]:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        redis = RedisServer(folder) if fault.redis else None
        if redis is not None:
            stack.callback(redis.stop)
            redis.start()
        disk = stack.enter_context(small_disk(folder / "disk")) if fault.disk else None
        clock = folder / "clock" if fault.clock else None
        if clock is not None:
            clock.write_text("0")
        if fault.own_model:
            model = Path(shutil.copy(model, folder / "model.gguf"))
        state = (disk or folder) / "state"
        settings = {**SETTINGS, **({"cache": redis.unix} if redis else {})}
        gateway = GatewayUnderTest(state, model, log=folder / "log", clock=clock, **settings)
        stack.callback(gateway.close)
        ledger = Ledger(texts, keeps=fault.keeps)
        yield Scene(gateway.start(), ledger, f"{seed} {name}", folder, redis, clock, disk)


async def _talk(scene: Scene, seconds: float) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(talker.talk(until) for talker in scene.talkers))


async def _heal(scene: Scene, calm: float) -> None:
    """Wait until all clients are answered for `calm` seconds after the fault."""
    for talker in scene.talkers:
        talker.flighty = 0.0
    until = time.monotonic() + HEAL_SECONDS
    while time.monotonic() < until:
        refused, turns = scene.ledger.row.refused, scene.ledger.row.turns
        await _talk(scene, calm)
        if scene.ledger.row.turns > turns and scene.ledger.row.refused == refused:
            return
    scene.ledger.stuck(f"requests were refused {HEAL_SECONDS:.0f} s after the fault was over")
