"""What a process takes of the machine, as psutil reads it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    """Bytes in memory and seconds of processor time of one process."""

    resident: int = 0
    """RSS: mapped weights that engines share are counted in each of them."""
    proportional: int = 0
    """PSS: they are counted once between those that share them. 0 where the system does not tell."""
    cpu_seconds: float = 0.0


def usage(pid: int) -> Usage:
    """What the process uses now; nothing when it has just ended. Takes milliseconds: the kernel walks its pages."""
    try:
        process = psutil.Process(pid)
        memory, times = process.memory_full_info(), process.cpu_times()
    except psutil.Error:
        return Usage()
    return Usage(memory.rss, getattr(memory, "pss", 0), times.user + times.system)
