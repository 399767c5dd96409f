"""Run an engine's loop in this process, with a thread in place of the gateway."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import cores
from engine import Model, WorkerConfig, heuristic
from engine.channel import Channel
from engine.worker import Worker
from gateway.config.settings import load as settings
from gateway.models.served import load
from gateway.models.sizing import SEQUENCES


def configuration(path: Path) -> WorkerConfig:
    """Return the configuration of an engine as `samovar serve` starts it, but single and without a cache."""
    with tempfile.TemporaryDirectory(prefix="samovar-bench-") as folder:
        cells = load(settings({"model": str(path), "state_dir": Path(folder)})).cells
    return WorkerConfig(str(path), cells, SEQUENCES, heuristic(path.stat().st_size, cores(), 1))


def serve(model: Model, config: WorkerConfig, gateway: Callable[[socket.socket], object]) -> None:
    """Run the loop until `gateway`, which talks to it over a socket, closes that socket."""
    near, far = socket.socketpair()
    with near:
        worker = Worker(Channel(near), model, config)
        thread = threading.Thread(target=gateway, args=(far,))
        thread.start()
        with contextlib.suppress(EOFError, BrokenPipeError):  # the gateway closes before the last messages are sent
            worker.run()
        thread.join()
