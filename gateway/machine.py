"""What this machine lets the pool use: cores and memory, containers' limits included."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import psutil


def available_cores() -> int:
    """Physical cores in the affinity mask, or the cgroup's CPU quota if that is less; at least 1."""
    mask = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in mask}
    return max(1, math.floor(min(len(cores), _cgroup_quota())))


def schedulable_cpus() -> int:
    """Logical processors in the affinity mask: more engine threads than these can't run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of RAM, or the cgroup's limit if that is less."""
    total = psutil.virtual_memory().total
    limit = _read(Path("/sys/fs/cgroup/memory.max"))
    return min(total, int(limit)) if limit.isdecimal() else total


def processor() -> str:
    """The processor's own name, as far as the system tells."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _siblings(cpu: int) -> str:
    """Name of the core that `cpu` is a hardware thread of."""
    return _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or str(cpu)


def _cgroup_quota() -> float:
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
