"""The faults, one function each: it hurts a scene again and again until its time is over, and leaves it healed."""

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
from benchmarks.servers import ServerError

HANG_SECONDS: Final = 60.0
"""An engine that hangs while it owes something is killed within this; a shorter run only makes it pause."""
PATIENCE: Final = 45.0
"""Who waits for longer waits for an engine that should have been found out: that takes about half a minute."""
FILES: Final = ("blocks.db", "blocks.db-wal")
"""Of the cache: what is damaged while it is in use."""
CONVERSATIONS: Final = "conversations.db"
DAMAGE: Final = 1 << 16
SPARE_MEMORY: Final = 1 << 20

Inflict = Callable[[Scene, float], Awaitable[None]]


@dataclass(frozen=True)
class Injury:
    """A fault and what its scene needs."""

    what: str
    """For the table."""
    inflict: Inflict
    redis: bool = False
    clock: bool = False
    disk: bool = False
    own_model: bool = False
    """Whether it damages the model's file: then it gets a copy."""
    share: float = 1.0
    """Of the time, beside the others."""
    keeps: bool = True
    """Whether what is noted of running answers outlives it."""
    flighty: float = 0.0
    """Chance that a client loses its connection in the middle of an answer."""


async def nothing(scene: Scene, until: float) -> None:
    """No fault: what the others are compared with."""
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    scene.ledger.row.inflicted = 0


async def kill_engines(scene: Scene, until: float) -> None:
    """SIGKILL for one of the engines."""
    while await scene.pause(0.3, 2.0, until):
        _kill_an_engine(scene)


async def kill_prompt_workers(scene: Scene, until: float) -> None:
    """SIGKILL for a process that renders and tokenizes, or for the host of all of them."""
    while await scene.pause(0.1, 1.0, until):
        luck, workers = scene.chance.random(), scene.house.prompt_workers()
        with suppress(psutil.NoSuchProcess, IndexError):
            workers[int(luck * len(workers))].kill()
            scene.done()


async def stop_engines(scene: Scene, until: float) -> None:
    """SIGSTOP: an engine says nothing more. Some go on after a while, some must be found out."""
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
                if for_good and _somebody_waits(scene):
                    scene.ledger.stuck(f"an engine that hung was not seen within {HANG_SECONDS:.0f} s")
                elif for_good:  # it owed nothing: that it does not answer can't be known before it is asked
                    scene.ledger.row.notes["an engine that hung without work was not seen, and nobody waited"] += 1
            finally:  # a run that is interrupted leaves nobody behind who cannot hear that it should end
                engine.resume()


async def kill_gateways(scene: Scene, until: float) -> None:
    """SIGKILL for the gateway, which is started again at once.

    Before half of the kills its engines say nothing for a while: answers here are soon whole, and of those that are
    under way then it must keep what they have said so far.
    """
    while await scene.pause(1.0, 4.0, until):
        silence = KEPT_SECONDS + 0.5 if scene.chance.random() < 0.5 else 0.0
        engines = scene.house.engines() if silence and time.monotonic() + silence < until else []
        scene.done()
        try:
            for engine in engines:
                with suppress(psutil.NoSuchProcess):
                    engine.suspend()
            if engines:
                await asyncio.sleep(silence)
            await asyncio.to_thread(scene.house.kill)
        finally:
            for engine in engines:
                with suppress(psutil.NoSuchProcess):
                    engine.resume()
        await asyncio.to_thread(scene.house.start)


async def kill_everything(scene: Scene, until: float) -> None:
    """Engines and gateways, in any order."""
    while await scene.pause(0.3, 2.0, until):
        if scene.chance.random() < 0.3:
            scene.done()
            await asyncio.to_thread(scene.house.kill)
            await asyncio.to_thread(scene.house.start)
        else:
            _kill_an_engine(scene)


async def hurt_redis(scene: Scene, until: float) -> None:
    """Killed and started empty, paused, or filled."""
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
            _tell_redis(scene, "CONFIG SET maxmemory 1")
        await scene.pause(0.3, 3.0, until)
        if kind == "killed":
            redis.start()  # here, as it takes no time: a thread might start it after an interrupted run's end
        elif kind == "paused":
            redis.thaw()
        else:
            _tell_redis(scene, "CONFIG SET maxmemory 0")


async def fill_disk(scene: Scene, until: float) -> None:
    """No byte is left where conversations, users and cache lie; on a shared disk, no file there may grow."""
    while await scene.pause(0.3, 1.5, until):
        scene.done()
        heal = _fill(scene.disk) if scene.disk is not None else _forbid_growth(scene)
        await scene.pause(0.3, 2.0, until)
        heal()


async def damage_cache(scene: Scene, until: float) -> None:
    """The cache's files are cut and garbled while gateway and engines use them."""
    while await scene.pause(0.2, 1.0, until):
        scene.done()
        _damage(scene, scene.house.state / scene.chance.choice(FILES))


async def damage_conversations(scene: Scene, until: float) -> None:
    """The conversations' file is cut or garbled while the gateway is down; it starts, and later that is put away."""
    path = scene.house.state / CONVERSATIONS
    while await scene.pause(1.0, 3.0, until):
        await asyncio.to_thread(scene.house.kill)
        _damage(scene, path)
        scene.done()
        try:
            await asyncio.to_thread(scene.house.start)
        except ServerError as error:
            if CONVERSATIONS not in str(error):
                scene.ledger.row.blame("a damaged file was not named when the gateway refused to start")
        await scene.pause(0.5, 2.0, until)
        await asyncio.to_thread(scene.house.kill)
        _remove(path)
        await asyncio.to_thread(scene.house.start)


async def replace_databases(scene: Scene, until: float) -> None:
    """An administrator's mistake: a database is removed, or an older copy of it put in its place, while it is in use.

    Turns that were acknowledged before that are gone with the file; what is acknowledged afterwards must stay.
    """
    path = scene.house.state / CONVERSATIONS
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
    """The time of day is minutes, hours or days off; less than what conversations are kept for."""
    assert scene.clock is not None, "the scene has one"  # noqa: S101
    while await scene.pause(0.2, 1.0, until):
        scene.done()
        scale = scene.chance.choice([60, 3_600, 86_400])
        scene.clock.write_text(str(scene.chance.uniform(-2, 2) * scale))
    scene.clock.write_text("0")


async def limit_files(scene: Scene, until: float) -> None:
    """The gateway may open no more files, while engines die and clients come and go."""
    while await scene.pause(0.3, 1.0, until):
        gateway = scene.house.gateway
        soft, hard = gateway.rlimit(psutil.RLIMIT_NOFILE)
        gateway.rlimit(psutil.RLIMIT_NOFILE, (gateway.num_fds() + scene.chance.randrange(3), hard))
        scene.done()
        await scene.pause(0.3, 1.0, until)
        _kill_an_engine(scene)
        await scene.pause(0.5, 1.5, until)
        await vandals.vanish(scene, 2)
        gateway.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))


async def limit_memory(scene: Scene, until: float) -> None:
    """An engine gets no more memory than it has; whether it lives on without or dies, answers go on."""
    while await scene.pause(0.3, 1.0, until):
        for engine in scene.house.engines():
            with suppress(psutil.Error):
                engine.rlimit(psutil.RLIMIT_AS, (engine.memory_info().vms + SPARE_MEMORY, resource.RLIM_INFINITY))
                scene.done()
        await scene.pause(0.5, 2.0, until)
        for engine in scene.house.engines():
            with suppress(psutil.Error):
                engine.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def damage_models(scene: Scene, until: float) -> None:
    """The model's file is cut under the engines, or garbled and they are killed; then it is put right again."""
    model = scene.house.model
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
    """Clients that vanish, stall and flood, beside those that behave but lose their connections."""
    while await scene.pause(0.1, 0.5, until):
        scene.done()
        vandal = scene.chance.choice([vandals.vanish, vandals.stall, vandals.flood])
        await vandal(scene, scene.chance.randrange(4, 20))


INJURIES: Final = {
    "nothing": Injury("nothing", nothing),
    "engines": Injury("engines killed (SIGKILL)", kill_engines),
    "prompts": Injury("prompt workers killed (SIGKILL)", kill_prompt_workers),
    "hangs": Injury("engines stopped (SIGSTOP)", stop_engines, share=8.0),  # in 10 minutes about five for good
    "gateways": Injury("gateway killed (SIGKILL)", kill_gateways),
    "kills": Injury("engines and gateways killed", kill_everything, share=3.0),
    "redis": Injury("Redis killed, paused, filled", hurt_redis, redis=True),
    "disk": Injury("disk full", fill_disk, disk=True),
    "cache": Injury("SQLite cache cut and garbled", damage_cache),
    "conversations": Injury(
        "conversations cut and garbled, copies in Redis", damage_conversations, redis=True, keeps=False
    ),
    "databases": Injury(
        "conversations removed and replaced, copies in Redis", replace_databases, redis=True, keeps=False
    ),
    "clock": Injury("clock jumps", jump_clocks, clock=True),
    "descriptors": Injury("no more open files", limit_files),
    "memory": Injury("no more memory for engines", limit_memory),
    "model": Injury("model file cut and garbled", damage_models, own_model=True),
    "clients": Injury("clients vanish, stall, flood", send_vandals, flighty=0.5),
}


def _an_engine(scene: Scene) -> psutil.Process | None:
    """One of those that live. It draws once, whatever it finds: what is drawn next does not depend on that."""
    luck, engines = scene.chance.random(), scene.house.engines()
    return engines[int(luck * len(engines))] if engines else None


def _somebody_waits(scene: Scene) -> bool:
    """Whether an answer has been waited for so long that a hang should have been found out."""
    now = time.monotonic()
    return any(talker.asked is not None and now - talker.asked > PATIENCE for talker in scene.talkers)


def _kill_an_engine(scene: Scene) -> None:
    engine = _an_engine(scene)
    with suppress(psutil.NoSuchProcess):
        if engine is not None:
            scene.done()
            engine.kill()


def _tell_redis(scene: Scene, command: str) -> None:
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
    gateway = scene.house.gateway
    soft, hard = gateway.rlimit(psutil.RLIMIT_FSIZE)
    gateway.rlimit(psutil.RLIMIT_FSIZE, (0, hard))

    def heal() -> None:
        with suppress(psutil.Error):
            gateway.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))

    return heal


def _damage(scene: Scene, path: Path) -> None:
    """Cut a file, or write junk into it, anywhere. It draws alike whatever its size."""
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
