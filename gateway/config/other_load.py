"""How busy other processes keep this machine. Measured speeds are wrong beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import psutil

BUSY: Final = 0.1
"""Cores kept busy by others from which on a measured speed is unreliable. Two threads of one engine wait for each other
at every layer, so that a tenth of a core costs them more than a tenth."""
INTERVAL: Final = 1.0
"""Seconds of one observation."""


class OtherLoad:
    """Processor time used by other processes, and by other guests of the hypervisor, since this object was created.

    A process cannot read the memory bandwidth that others use. On the same machine they cannot use any without
    processor time; that of another guest shows in the measured bandwidth only.
    """

    def __init__(self, *own: psutil.Process) -> None:
        """Watch all processes but this one and `own`, and their children."""
        self._own = (psutil.Process(), *own)
        self._start = self._count()

    def _count(self) -> tuple[float, float]:
        """Return (monotonic seconds, processor seconds of other processes since boot)."""
        times = psutil.cpu_times()
        others = sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)
        return time.monotonic(), others - getattr(times, "guest_nice", 0) - self._spent()

    def _spent(self) -> float:
        """Return the processor seconds of the own processes. Ended children count as part of their parent."""
        processes = {p.pid: p for each in self._own for p in (each, *each.children(recursive=True))}
        return sum(sum(times[:4]) for times in (_times(process) for process in processes.values()))

    def cores(self) -> float:
        """Return the average number of cores that others kept busy."""
        now, spent = self._count()
        return max(0.0, (spent - self._start[1]) / max(now - self._start[0], 1e-3))


def _times(process: psutil.Process) -> tuple[float, ...]:
    try:
        return tuple(process.cpu_times())
    except psutil.NoSuchProcess:  # it has just ended
        return ()


def wait_until_idle(
    seconds: float,
    progress: Callable[[float], None],
    *,
    load: Callable[[], OtherLoad] = OtherLoad,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Observe other processes until they use less than BUSY cores, for at most `seconds`; return what they use then.

    `progress` gets the cores that others use, after each observation in which they are too many.
    """
    left = seconds
    while True:
        observed = load()
        sleep(INTERVAL)
        left -= INTERVAL
        if (cores := observed.cores()) < BUSY or left <= 0:
            return cores
        progress(cores)
