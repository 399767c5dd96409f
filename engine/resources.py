"""Which processes engines are, and what one takes of the machine, as psutil reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil


@dataclass(frozen=True)
class Usage:
    """Bytes in memory and seconds of processor time of one process."""

    resident: int = 0
    """RSS: mapped weights that engines share are counted in each of them."""
    proportional: int = 0
    """PSS: they are counted once between those that share them. 0 where the system does not tell."""
    cpu_seconds: float = 0.0


def engines_of(gateway: psutil.Process) -> list[psutil.Process]:
    """Its engine processes, those that have just ended left out; none when it has ended itself."""
    try:
        children = gateway.children()
    except psutil.Error:
        return []
    return [child for child in children if _is_engine(child)]


def usage(pid: int, *, walk: bool = True) -> Usage:
    """What the process uses now; nothing when it has just ended.

    Its PSS is 0 without `walk`: for that the kernel walks its pages, which takes tens of milliseconds of a core.
    """
    try:
        process = psutil.Process(pid)
        memory, times = process.memory_full_info() if walk else process.memory_info(), process.cpu_times()
    except psutil.Error:
        return Usage()
    return Usage(memory.rss, getattr(memory, "pss", 0), times.user + times.system)


class Meter:
    """What one engine takes, whichever process it is now: its processor time goes on where that of the last ended."""

    def __init__(self) -> None:
        """Nothing was used yet."""
        self._pid: int | None = None
        self._before = self._latest = 0.0
        """Seconds of the processes that are gone, and of this one when it was last looked at."""
        self._proportional = 0
        """Bytes when its pages were last walked."""

    def read(self, pid: int | None, *, walk: bool = True) -> Usage:
        """What it uses now, as process `pid`, if it is one. Without `walk` its PSS is that of the last time."""
        new = pid != self._pid
        walk = walk or new
        now = Usage() if pid is None else usage(pid, walk=walk)
        if new:  # only now: for want of files it may have told nothing
            self._before, self._latest, self._pid = self._before + self._latest, 0.0, pid
        self._latest = max(self._latest, now.cpu_seconds)  # one that has just ended tells nothing any more
        if walk:
            self._proportional = now.proportional
        return replace(now, proportional=self._proportional, cpu_seconds=self._before + self._latest)


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "engine.worker" in process.cmdline()
    except psutil.Error:
        return False
