"""What an engine uses, as it is read while it has better to do, and over the lives that it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.resources import Meter


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells the PSS")
def test_what_is_dear_to_read_is_what_it_was_when_it_was_last_read() -> None:
    meter = Meter()
    first = meter.read(os.getpid(), walk=False)
    assert 0 < first.proportional <= first.resident  # of a new process it is read in any case
    ballast = bytearray(b"x") * (32 << 20)
    second = meter.read(os.getpid(), walk=False)
    assert second.proportional == first.proportional
    assert second.resident >= first.resident + len(ballast) // 2
    assert meter.read(os.getpid()).proportional >= first.proportional + len(ballast) // 2


def test_processor_time_goes_on_over_an_engines_lives() -> None:
    meter = Meter()
    before = meter.read(os.getpid()).cpu_seconds
    assert before > 0
    assert meter.read(None).cpu_seconds == before
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as next_life:
        assert meter.read(next_life.pid).cpu_seconds >= before
        assert next_life.stdin is not None
        next_life.stdin.close()
