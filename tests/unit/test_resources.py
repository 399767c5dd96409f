"""Readings of an engine's memory and processor time, while it is busy and over successive processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.resources import Meter


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports the PSS")
def test_the_pss_is_the_last_one_read_while_it_is_expensive_to_read() -> None:
    meter = Meter()
    first = meter.read(os.getpid(), pss=False)
    assert 0 < first.proportional <= first.resident  # for a new process, the PSS is always read
    ballast = bytearray(b"x") * (32 << 20)
    second = meter.read(os.getpid(), pss=False)
    assert second.proportional == first.proportional
    assert second.resident >= first.resident + len(ballast) // 2
    assert meter.read(os.getpid()).proportional >= first.proportional + len(ballast) // 2


def test_processor_time_accumulates_over_successive_processes() -> None:
    meter = Meter()
    before = meter.read(os.getpid()).cpu_seconds
    assert before > 0
    assert meter.read(None).cpu_seconds == before
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert meter.read(process.pid).cpu_seconds >= before
        assert process.stdin is not None
        process.stdin.close()
