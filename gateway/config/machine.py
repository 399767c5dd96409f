"""What this machine lets the pool use: cores and memory, the limits of containers and of systemd's units included."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

ROOT: Final = Path("/")
"""Where /proc and /sys are."""


def available_cores(*, root: Path = ROOT) -> int:
    """Physical cores in the affinity mask, or the least CPU quota of the cgroups if that is less; at least 1."""
    mask = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in mask}
    quotas = (_quota(folder / "cpu.max") for folder in _cgroups(root))
    return max(1, math.floor(min(len(cores), *quotas)))


def schedulable_cpus() -> int:
    """Logical processors in the affinity mask: more engine threads than these can't run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory(*, root: Path = ROOT) -> int:
    """Bytes of RAM, or the least limit of the cgroups if that is less."""
    limits = [_read(folder / "memory.max") for folder in _cgroups(root)]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])


def available_memory() -> int:
    """Bytes that can be had without swapping; a container's limit is one, too."""
    return min(psutil.virtual_memory().available, total_memory())


def processor() -> str:
    """The processor's own name, as far as the system tells."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _siblings(cpu: int) -> str:
    """Name of the core that `cpu` is a hardware thread of."""
    return _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or str(cpu)


def _cgroups(root: Path) -> list[Path]:
    """Folders of the cgroups (version 2) that this process is in: all their limits hold, and the least is felt.

    In a container the mounted folder is its own. Outside it is the whole machine's, which has no limits: those of a
    systemd unit lie in system.slice/samovar.service.
    """
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = PurePosixPath(next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), ""))
    return [root / "sys/fs/cgroup" / folder for folder in (own, *own.parents)]


def _quota(file: Path) -> float:
    quota, _, period = _read(file).partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
