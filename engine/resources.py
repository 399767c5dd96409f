"""Finds engine processes and reads their memory and processor time with psutil."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil


@dataclass(frozen=True)
class Usage:
    """Memory in bytes and processor time in seconds of one process."""

    resident: int = 0
    """RSS. Mapped weights that engines share count fully in each of them."""
    proportional: int = 0
    """PSS. Memory that engines share is divided between them. 0 where the system does not report it."""
    cpu_seconds: float = 0.0


def engines_of(gateway: psutil.Process) -> list[psutil.Process]:
    """Return the running engine processes of a gateway; none if the gateway has ended."""
    try:
        children = gateway.children()
    except psutil.Error:
        return []
    return [child for child in children if _is_engine(child)]


def usage(pid: int, *, pss: bool = True) -> Usage:
    """Return the usage of process `pid`; zeros if it has ended.

    Without `pss` the PSS is 0. For the PSS, the kernel walks all pages, which takes tens of milliseconds of a core.
    """
    try:
        process = psutil.Process(pid)
        memory, times = process.memory_full_info() if pss else process.memory_info(), process.cpu_times()
    except psutil.Error:
        return Usage()
    return Usage(memory.rss, getattr(memory, "pss", 0), times.user + times.system)


class Meter:
    """Reads the usage of one engine over successive processes, and adds up their processor time."""

    def __init__(self) -> None:
        """Start at zero."""
        self._pid: int | None = None
        self._before = self._latest = 0.0
        """Processor seconds of the ended processes, and of the current one at the last reading."""
        self._proportional = 0
        """PSS in bytes at its last reading."""

    def read(self, pid: int | None, *, pss: bool = True) -> Usage:
        """Return the usage as process `pid`, None if no process runs. Without `pss`, the PSS is the last one read."""
        new = pid != self._pid
        pss = pss or new
        now = Usage() if pid is None else usage(pid, pss=pss)
        if new:  # after the reading, which returns nothing when no file can be opened
            self._before, self._latest, self._pid = self._before + self._latest, 0.0, pid
        self._latest = max(self._latest, now.cpu_seconds)  # the reading is 0 if the process has just ended
        if pss:
            self._proportional = now.proportional
        return replace(now, proportional=self._proportional, cpu_seconds=self._before + self._latest)


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "engine.worker" in process.cmdline()
    except psutil.Error:
        return False
