"""The faults, one function each, which injects the fault repeatedly until its time is over and then repairs it."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from redis import Redis

from benchmarks.faults import vandals
from benchmarks.faults.scene import Scene
from benchmarks.faults.talker import KEPT_SECONDS
from gateway.cli.launcher import LaunchError

HANG_SECONDS: Final = 60.0
"""The gateway kills a hung engine that has work within this time; shorter runs only pause engines."""
PATIENCE: Final = 45.0
"""Wait after which a hang should have been detected, which takes about half a minute."""
FILES: Final = ("blocks.db", "blocks.db-wal")
"""Files of the cache that are damaged while they are in use."""
CONVERSATIONS: Final = "conversations.db"
DAMAGE: Final = 1 << 16
SPARE_MEMORY: Final = 1 << 20

Inject = Callable[[Scene, float], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A fault and the surroundings that it needs."""

    title: str
    """Name in the table."""
    inject: Inject
    redis: bool = False
    clock: bool = False
    disk: bool = False
    own_model: bool = False
    """Whether the fault damages the model file, and therefore needs a copy of it."""
    share: float = 1.0
    """Share of the time, relative to other faults."""
    keeps: bool = True
    """Whether the stored parts of running answers survive the fault."""
    flighty: float = 0.0
    """Chance that a client loses its connection in the middle of an answer."""


async def nothing(scene: Scene, until: float) -> None:
    """Inject no fault, as a reference."""
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    scene.ledger.row.injected = 0


async def kill_engines(scene: Scene, until: float) -> None:
    """Kill one of the engines with SIGKILL."""
    while await scene.pause(0.3, 2.0, until):
        _kill_an_engine(scene)


async def kill_prompt_workers(scene: Scene, until: float) -> None:
    """Kill a prompt worker, or the host process of all of them, with SIGKILL."""
    while await scene.pause(0.1, 1.0, until):
        luck, workers = scene.chance.random(), scene.gateway.prompt_workers()
        with suppress(psutil.NoSuchProcess, IndexError):
            workers[int(luck * len(workers))].kill()
            scene.done()


async def stop_engines(scene: Scene, until: float) -> None:
    """Stop an engine with SIGSTOP. Some continue after a while, others must be detected."""
    while await scene.pause(0.3, 2.0, until):
        engine, pause = _an_engine(scene), scene.chance.uniform(0.2, 1.5)
        if engine is None:
            continue
        for_good = until - time.monotonic() > HANG_SECONDS
        with suppress(psutil.NoSuchProcess):
            engine.suspend()
            scene.done()
            try:
                await asyncio.to_thread(engine.wait, HANG_SECONDS if for_good else pause)
                scene.ledger.row.for_good += for_good
            except psutil.TimeoutExpired:
                if for_good and _client_waits(scene):
                    scene.ledger.stuck(f"a hung engine was not detected within {HANG_SECONDS:.0f} s")
                elif for_good:  # without work, a hang cannot be detected before the next request
                    scene.ledger.row.notes["a hung engine without work was not detected, and no request waited"] += 1
            finally:  # an interrupted run leaves no stopped process that ignores SIGTERM
                engine.resume()


async def kill_gateways(scene: Scene, until: float) -> None:
    """Kill the gateway with SIGKILL and restart it at once.

    Before half of the kills the engines are stopped for a while: answers here complete quickly, and the gateway must
    have stored the text so far of those that are then running.
    """
    while await scene.pause(1.0, 4.0, until):
        silence = KEPT_SECONDS + 0.5 if scene.chance.random() < 0.5 else 0.0
        engines = scene.gateway.engines() if silence and time.monotonic() + silence < until else []
        scene.done()
        try:
            for engine in engines:
                with suppress(psutil.NoSuchProcess):
                    engine.suspend()
            if engines:
                await asyncio.sleep(silence)
            await asyncio.to_thread(scene.gateway.kill)
        finally:
            for engine in engines:
                with suppress(psutil.NoSuchProcess):
                    engine.resume()
        await asyncio.to_thread(scene.gateway.start)


async def kill_everything(scene: Scene, until: float) -> None:
    """Kill engines and gateways, in random order."""
    while await scene.pause(0.3, 2.0, until):
        if scene.chance.random() < 0.3:
            scene.done()
            await asyncio.to_thread(scene.gateway.kill)
            await asyncio.to_thread(scene.gateway.start)
        else:
            _kill_an_engine(scene)


async def hurt_redis(scene: Scene, until: float) -> None:
    """Kill Redis and start it empty, pause it, or fill it."""
    redis = scene.redis
    assert redis is not None, "the scene has one"  # noqa: S101
    while await scene.pause(0.3, 1.5, until):
        kind = scene.chance.choice(["killed", "paused", "filled"])
        scene.done()
        if kind == "killed":
            redis.stop()
        elif kind == "paused":
            redis.freeze()
        else:
            _configure_redis(scene, "CONFIG SET maxmemory 1")
        await scene.pause(0.3, 3.0, until)
        if kind == "killed":
            redis.start()  # not in a thread, which might start it after the end of an interrupted run
        elif kind == "paused":
            redis.thaw()
        else:
            _configure_redis(scene, "CONFIG SET maxmemory 0")


async def fill_disk(scene: Scene, until: float) -> None:
    """Fill the disk of conversations, users and cache; on a shared disk, forbid their files to grow instead."""
    while await scene.pause(0.3, 1.5, until):
        scene.done()
        heal = _fill(scene.disk) if scene.disk is not None else _forbid_growth(scene)
        await scene.pause(0.3, 2.0, until)
        heal()


async def damage_cache(scene: Scene, until: float) -> None:
    """Truncate and corrupt the files of the cache while gateway and engines use them."""
    while await scene.pause(0.2, 1.0, until):
        scene.done()
        _damage(scene, scene.gateway.state / scene.chance.choice(FILES))


async def damage_conversations(scene: Scene, until: float) -> None:
    """Truncate or corrupt the file of conversations while the gateway is down; remove the file after a while."""
    path = scene.gateway.state / CONVERSATIONS
    while await scene.pause(1.0, 3.0, until):
        await asyncio.to_thread(scene.gateway.kill)
        _damage(scene, path)
        scene.done()
        try:
            await asyncio.to_thread(scene.gateway.start)
        except LaunchError as error:
            if CONVERSATIONS not in str(error):
                scene.ledger.row.blame("a damaged file was not named when the gateway refused to start")
        await scene.pause(0.5, 2.0, until)
        await asyncio.to_thread(scene.gateway.kill)
        _remove(path)
        await asyncio.to_thread(scene.gateway.start)


async def replace_databases(scene: Scene, until: float) -> None:
    """Remove a database in use, or replace it with an older copy, as an administrator might by mistake.

    Turns that were acknowledged before are lost with the file; turns that are acknowledged afterwards must stay.
    """
    path = scene.gateway.state / CONVERSATIONS
    while await scene.pause(0.3, 1.5, until):
        scene.done()
        if scene.chance.random() < 0.5:
            _remove(path)
            continue
        with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as source:
            copy = path.with_suffix(".copy")
            with closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        await scene.pause(0.2, 0.5, until)
        if copy.exists():
            copy.replace(path)


async def jump_clocks(scene: Scene, until: float) -> None:
    """Shift the time of day by minutes, hours or days, by less than the retention of conversations."""
    assert scene.clock is not None, "the scene has one"  # noqa: S101
    while await scene.pause(0.2, 1.0, until):
        scene.done()
        scale = scene.chance.choice([60, 3_600, 86_400])
        scene.clock.write_text(str(scene.chance.uniform(-2, 2) * scale))
    scene.clock.write_text("0")


async def limit_files(scene: Scene, until: float) -> None:
    """Forbid the gateway to open more files, while engines are killed and clients connect and vanish."""
    while await scene.pause(0.3, 1.0, until):
        gateway = scene.gateway.process
        soft, hard = gateway.rlimit(psutil.RLIMIT_NOFILE)
        gateway.rlimit(psutil.RLIMIT_NOFILE, (gateway.num_fds() + scene.chance.randrange(3), hard))
        scene.done()
        await scene.pause(0.3, 1.0, until)
        _kill_an_engine(scene)
        await scene.pause(0.5, 1.5, until)
        await vandals.vanish(scene, 2)
        gateway.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))


async def limit_memory(scene: Scene, until: float) -> None:
    """Forbid engines to allocate more memory; whether they survive or crash, answers must continue."""
    while await scene.pause(0.3, 1.0, until):
        for engine in scene.gateway.engines():
            with suppress(psutil.Error):
                engine.rlimit(psutil.RLIMIT_AS, (engine.memory_info().vms + SPARE_MEMORY, resource.RLIM_INFINITY))
                scene.done()
        await scene.pause(0.5, 2.0, until)
        for engine in scene.gateway.engines():
            with suppress(psutil.Error):
                engine.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def damage_models(scene: Scene, until: float) -> None:
    """Truncate or corrupt the model file and kill an engine; then restore the file."""
    model = scene.gateway.model
    whole = model.read_bytes()
    while await scene.pause(0.5, 1.5, until):
        scene.done()
        if scene.chance.random() < 0.5:
            os.truncate(model, scene.chance.randrange(len(whole)))
        else:
            garbled = bytearray(whole)
            for _ in range(8):
                garbled[scene.chance.randrange(2048)] ^= 1 << scene.chance.randrange(8)
            _replace(model, bytes(garbled))
        await scene.pause(0.3, 1.0, until)
        _kill_an_engine(scene)
        await scene.pause(0.5, 1.5, until)
        _replace(model, whole)
        await scene.pause(1.0, 2.0, until)
    _replace(model, whole)


async def send_vandals(scene: Scene, until: float) -> None:
    """Run clients that vanish, stall and flood, next to regular ones that lose their connections."""
    while await scene.pause(0.1, 0.5, until):
        scene.done()
        vandal = scene.chance.choice([vandals.vanish, vandals.stall, vandals.flood])
        await vandal(scene, scene.chance.randrange(4, 20))


FAULTS: Final = {
    "nothing": Fault("nothing", nothing),
    "engines": Fault("engines killed (SIGKILL)", kill_engines),
    "prompts": Fault("prompt workers killed (SIGKILL)", kill_prompt_workers),
    "hangs": Fault("engines stopped (SIGSTOP)", stop_engines, share=8.0),  # in 10 minutes about five hangs
    "gateways": Fault("gateway killed (SIGKILL)", kill_gateways),
    "kills": Fault("engines and gateways killed", kill_everything, share=3.0),
    "redis": Fault("Redis killed, paused, filled", hurt_redis, redis=True),
    "disk": Fault("disk full", fill_disk, disk=True),
    "cache": Fault("SQLite cache cut and garbled", damage_cache),
    "conversations": Fault(
        "conversations cut and garbled, copies in Redis", damage_conversations, redis=True, keeps=False
    ),
    "databases": Fault(
        "conversations removed and replaced, copies in Redis", replace_databases, redis=True, keeps=False
    ),
    "clock": Fault("clock jumps", jump_clocks, clock=True),
    "descriptors": Fault("no more open files", limit_files),
    "memory": Fault("no more memory for engines", limit_memory),
    "model": Fault("model file cut and garbled", damage_models, own_model=True),
    "clients": Fault("clients vanish, stall, flood", send_vandals, flighty=0.5),
}


def _an_engine(scene: Scene) -> psutil.Process | None:
    """Return a random running engine. Always draws one number, so that later draws do not depend on the engines."""
    luck, engines = scene.chance.random(), scene.gateway.engines()
    return engines[int(luck * len(engines))] if engines else None


def _client_waits(scene: Scene) -> bool:
    """Whether a client has waited so long for an answer that a hang should have been detected."""
    now = time.monotonic()
    return any(talker.asked is not None and now - talker.asked > PATIENCE for talker in scene.talkers)


def _kill_an_engine(scene: Scene) -> None:
    engine = _an_engine(scene)
    with suppress(psutil.NoSuchProcess):
        if engine is not None:
            scene.done()
            engine.kill()


def _configure_redis(scene: Scene, command: str) -> None:
    assert scene.redis is not None  # noqa: S101
    with Redis(unix_socket_path=str(scene.redis.socket)) as client:
        client.execute_command(command)


def _fill(disk: Path) -> Callable[[], None]:
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0")
    return ballast.unlink


def _forbid_growth(scene: Scene) -> Callable[[], None]:
    gateway = scene.gateway.process
    soft, hard = gateway.rlimit(psutil.RLIMIT_FSIZE)
    gateway.rlimit(psutil.RLIMIT_FSIZE, (0, hard))

    def heal() -> None:
        with suppress(psutil.Error):
            gateway.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))

    return heal


def _damage(scene: Scene, path: Path) -> None:
    """Truncate a file, or overwrite a part of it, at a random place. Draws the same numbers whatever its size."""
    where, cut, junk = (scene.chance.random() for _ in range(3))
    with suppress(FileNotFoundError):
        size = path.stat().st_size
        at = int(where * size)
        if cut < 0.5:
            os.truncate(path, at)
            return
        with path.open("r+b") as file:
            file.seek(at)
            file.write(random.Random(junk).randbytes(min(DAMAGE, size - at)))


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.replace(path)
