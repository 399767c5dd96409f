"""Messages for a model that does not fit the memory: under a limit of the process, and on a small machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.cli import serve
from gateway.config.settings import load
from gateway.models import served
from tests.support.running import CHILD_ENVIRONMENT

UNDER_A_LIMIT = """
import re, resource, sys
from pathlib import Path
from engine import EngineError, Model
from engine.llama import Context

model = Model(Path(sys.argv[1]))
used = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (8 << 20),) * 2)
try:
    Context(model, cells=1 << 18, sequences=4, threads=1)
except EngineError as error:
    print(error)
"""


def test_the_error_for_a_context_without_memory_names_the_settings(tiny_model: Path) -> None:
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(tiny_model)]
    run = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True)
    assert run.stdout == (
        "no context of 262144 cells can be created: there is not enough memory: "
        "set a smaller context or engine_memory, or raise the memory limit\n"
    )


@pytest.mark.parametrize("missing", [0, 1])
def test_serve_warns_if_not_even_one_engine_fits_the_memory(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    model = served.load(load({"model": str(tiny_model), "state_dir": str(tmp_path)}))
    needed = model.footprint(1)
    monkeypatch.setattr(serve, "available_memory", lambda: needed - missing)
    with capture_logs() as lines:
        serve._warn_of_memory(model)
    assert [line["needed_bytes"] for line in lines] == [needed] * missing
