"""Resident memory of the gateway and its engines, sampled in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil

from gateway.cli.bench.gateway import MeasuredGateway
from gateway.cli.bench.results import Phase, Sample

EVERY_SECONDS: Final = 0.1
"""Sampling interval. The write-up sampled every half second, which misses peaks."""


class Watch:
    """Samples memory in a thread while `watching`."""

    def __init__(self, gateway: MeasuredGateway) -> None:
        """Start without samples."""
        self._gateway = gateway
        self._samples: list[Sample] = []
        self._over = threading.Event()
        self._began = time.monotonic()
        self.phases: list[Phase] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample until the context ends."""
        thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the samples of the context, and one at its end, as a phase."""
        before = len(self._samples)
        yield
        self._sample()
        self.phases.append(Phase(name, self._samples[before:]))

    def _watch(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._sample()

    def _sample(self) -> None:
        engines = sum(map(_resident, self._gateway.engines()))
        at = time.monotonic() - self._began
        self._samples.append(Sample(at, _resident(self._gateway.process), engines))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # the process has just ended
        return 0
