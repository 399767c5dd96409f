"""Saves what the gateway learns about step times, so that the next run starts with it."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from engine import LearningCostModel
from gateway.models.cost_models import LearnedFile

SAVE_SECONDS: Final = 60.0
"""Seconds between two writes: what a crash may lose."""


class LearnedSaver:
    """Writes the learned step times to their file, off the event loop."""

    def __init__(self, costs: LearningCostModel, file: LearnedFile) -> None:
        """Save what `costs` learns from now on to `file`."""
        self._costs = costs
        self._file = file
        self._saved = costs.samples
        self._fault = ""

    async def run(self) -> None:
        """Save every SAVE_SECONDS, until cancelled."""
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await self.save()

    async def save(self) -> None:
        """Save now if steps were observed since the last time. A disk failure is logged once."""
        samples = self._costs.samples
        if samples == self._saved:
            return
        try:
            await asyncio.to_thread(self._file.write, self._costs.learned())
        except OSError as error:
            fault = error.strerror or str(error)
            if fault != self._fault:
                advice = "the next start begins without it; check state_dir"
                structlog.get_logger().warning("learned step times not saved", reason=fault, advice=advice)
            self._fault = fault
        else:
            self._saved, self._fault = samples, ""
