"""Cores and memory that the engines may use, with the limits of containers and systemd units."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

ROOT: Final = Path("/")
"""Folder of /proc and /sys."""


def available_cores(*, root: Path = ROOT) -> int:
    """Return the physical cores in the affinity mask, or the lowest CPU quota of the cgroups if lower; at least 1."""
    mask = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in mask}
    quotas = (_quota(folder / "cpu.max") for folder in _cgroups(root))
    return max(1, math.floor(min(len(cores), *quotas)))


def schedulable_cpus() -> int:
    """Return the logical processors in the affinity mask: the number of threads that can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory(*, root: Path = ROOT) -> int:
    """Return the bytes of RAM, or the lowest memory limit of the cgroups if lower."""
    limits = [_read(folder / "memory.max") for folder in _cgroups(root)]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])


def available_memory() -> int:
    """Return the bytes available without swapping, at most the limit of the cgroups."""
    return min(psutil.virtual_memory().available, total_memory())


def processor() -> str:
    """Return the processor's model name, or its architecture if the system does not report a name."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _siblings(cpu: int) -> str:
    """Return an identifier of the physical core of which `cpu` is a hardware thread."""
    return _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or str(cpu)


def _cgroups(root: Path) -> list[Path]:
    """Return the folders of this process's cgroup (version 2) and its parents; the lowest of their limits applies.

    In a container the mounted root is the container's own cgroup. On a host it is the machine's, which has no limits;
    the limits of a systemd unit are in system.slice/samovar.service.
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
