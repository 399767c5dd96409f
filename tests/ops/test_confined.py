"""What support/confined.py forbids is forbidden, and a gateway serves with only its own folder writable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.test_deploy import UNIT
from tests.support.running import SAMOVAR, Gateway, said

CONFINED = [sys.executable, "-m", "tests.support.confined", str(UNIT)]
BY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's to make")
TRIES = """
import ctypes, mmap, os, resource, socket
from pathlib import Path
def refused(what):
    try:
        return not what()
    except OSError:
        return True
library = ctypes.CDLL(None)
print("W^X", refused(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)))
print("family", refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)))
print("call", refused(lambda: library.ptrace(0, 0, 0, 0) == 0))
print("user namespace", refused(lambda: library.unshare(0x10000000) == 0))
print("realtime", refused(lambda: not os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))))
print("core", resource.getrlimit(resource.RLIMIT_CORE) == (0, 0))
print("umask", os.umask(0o077) == 0o077)
status = Path("/proc/self/status").read_text().split()
print("privileges", status[status.index("NoNewPrivs:") + 1] == "1")
"""
WRITES = """
import os, sys
from pathlib import Path
for folder in sys.argv[1:]:
    try:
        (Path(folder) / "written").write_text("!")
        print(folder, "is written")
    except OSError as error:
        print(folder, error.strerror)
print(*(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")))
"""


def run(*command: str) -> list[str]:
    """What a command prints, line by line."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_what_the_unit_forbids_is_refused() -> None:
    code = [sys.executable, "-c", TRIES]
    refused = run(*CONFINED, *code)
    assert [line for line in refused if not line.endswith(" True")] == []
    assert len(refused) == 8
    assert {"W^X False", "family False"} <= {*run(*code)}  # the rest, other confinements may refuse as well


@BY_ROOT
def test_nothing_can_be_written_but_one_folder_and_root_has_no_capability(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir()
    elsewhere.mkdir()
    folders = [str(state), str(elsewhere), "/"]
    printed = run(*CONFINED, f"--writable={state}", sys.executable, "-c", WRITES, *folders)
    refusals = [f"{folder} Read-only file system" for folder in folders[1:]]
    assert printed == [f"{state} is written", *refusals, "CapEff:\t0000000000000000"]
    assert run(sys.executable, "-c", WRITES, str(elsewhere))[0] == f"{elsewhere} is written"


@BY_ROOT
@pytest.mark.slow
async def test_a_gateway_serves_where_nothing_but_its_state_folder_can_be_written(
    tmp_path: Path, tiny_model: Path
) -> None:
    gateway = Gateway(tmp_path / "state", model=tiny_model, context=512)
    gateway.state.mkdir(mode=0o700)
    gateway.command = [*CONFINED, f"--writable={gateway.state}", *SAMOVAR]
    with gateway:
        async with gateway.connect() as conversation:
            first = await conversation.ask("茶炊是什么?", max_output_tokens=5)
            assert said(first)
            second = await conversation.ask("?", previous_response_id=first[-1].response.id, max_output_tokens=5)
            assert second[-1].response.usage.input_tokens_details.cached_tokens > 0
    assert "Traceback" not in gateway.log()
