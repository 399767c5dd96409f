"""The systemd unit: accepted by systemd's own checks, and a gateway that serves under all that it forbids."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.systemd import Supervisor
from tests import ROOT
from tests.support.confined import allowed, properties
from tests.support.running import SAMOVAR, Gateway, said

UNIT = ROOT / "deploy" / "systemd" / "samovar.service"
EXPOSURE = 2.0
"""Of `systemd-analyze security`, whose own words for under 2 are that all is well; a unit without settings has 9.6."""


class Manager:
    """What systemd listens on."""

    def __init__(self, folder: Path) -> None:
        """A socket in `folder`, which is named to whoever is supervised."""
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(20)
        self.environment = {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": "600000"}

    def receive(self) -> list[str]:
        """The lines of the next word."""
        return self.socket.recv(4096).decode().splitlines()

    def receive_about(self, what: str) -> list[str]:
        """The next word that is about this; signs of life in between are passed over."""
        while what not in (lines := self.receive()):
            assert lines == ["WATCHDOG=1"]
        return lines

    def silence(self) -> bool:
        """Whether nothing was said lately."""
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(20)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens."""
    manager = Manager(tmp_path)
    yield manager
    manager.socket.close()


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as it is installed here: /opt/samovar is this checkout."""
    path = tmp_path / "samovar.service"
    command = Path(sys.executable).parent / "samovar"
    path.write_text(UNIT.read_text().replace("/opt/samovar/.venv/bin/samovar", str(command)))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze`, which needs no systemd that runs."""
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    found = analyze("verify", unit)
    assert (found.returncode, found.stderr) == (0, "")
    unit.write_text(unit.read_text() + "\n[Service]\nProtectSystem=sometimes\n")
    assert "protect system value" in analyze("verify", unit).stderr


def test_the_unit_leaves_little_exposed(unit: Path) -> None:
    found = analyze("security", "--offline=true", "--no-pager", unit)
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", found.stdout)
    assert score, found.stdout + found.stderr
    print(score[0])
    assert float(score[1]) < EXPOSURE, found.stdout


def test_the_unit_forbids_what_ends_other_processes_services_or_machines() -> None:
    permitted = allowed(properties(UNIT)["SystemCallFilter"])
    assert not permitted & {"reboot", "mount", "ptrace", "init_module", "bpf", "setuid", "chroot", "add_key", "swapon"}


def test_the_unit_forbids_swap_and_core_dumps() -> None:
    said = properties(UNIT)
    assert said["MemorySwapMax"] == ["0"]
    assert said["LimitCORE"] == ["0"]


def test_what_the_unit_and_the_gateway_promise_each_other_fits() -> None:
    from gateway.cli import serve

    said = properties(UNIT)
    seconds = int(said["TimeoutStopSec"][0].removesuffix("s"))
    assert seconds > serve.GRACE_SECONDS + serve.LAST_SECONDS + 10
    assert said["Type"] == ["notify"]
    assert said["KillMode"] == ["mixed"]  # engines end by their gateway, not at the same time
    assert said["OOMPolicy"] == ["continue"]  # one engine's end is not the gateway's


def test_the_unit_is_restarted_however_often_it_exits() -> None:
    said = properties(UNIT)
    assert said["StartLimitIntervalSec"] == ["0"]
    assert said["Restart"] == ["on-failure"]
    assert said["RestartSec"] == ["5s"]  # time for Redis and the network to start
    before_service, _ = UNIT.read_text().split("[Service]")
    assert "StartLimitIntervalSec" in before_service  # elsewhere systemd passes over it


@pytest.mark.slow
async def test_a_gateway_serves_under_the_units_restrictions_and_notifies_systemd(
    tmp_path: Path, tiny_model: Path, unit: Path, manager: Manager
) -> None:
    gateway = Gateway(tmp_path / "state", model=tiny_model, context=512)
    gateway.command = [sys.executable, "-m", "tests.support.confined", str(unit), *SAMOVAR]
    gateway.environment = {**gateway.environment, **manager.environment}
    with gateway:
        assert manager.receive() == ["READY=1", f"STATUS=Samovar: {gateway.url}"]
        async with gateway.connect() as conversation:
            first = await conversation.ask("茶炊是什么?", max_output_tokens=5)
            assert said(first)
            second = await conversation.ask("?", previous_response_id=first[-1].response.id, max_output_tokens=5)
            assert second[-1].response.usage.input_tokens_details.cached_tokens > 0
        manager.receive_about("WATCHDOG=1")
        gateway.process.send_signal(signal.SIGTERM)
        assert manager.receive_about("STOPPING=1")[1].startswith("STATUS=")
        assert gateway.wait() == 0
    assert "Traceback" not in gateway.log()


async def test_a_loop_that_hangs_gives_no_sign_of_life(manager: Manager) -> None:
    supervisor = Supervisor({**manager.environment, "WATCHDOG_USEC": "30000"})
    supervisor.ready("well")
    for _ in range(3):
        await asyncio.sleep(0.02)
    assert manager.receive()[0] == "READY=1"
    while not manager.silence():
        continue
    time.sleep(0.1)  # noqa: ASYNC251 - this is the loop that hangs
    assert manager.silence()
    await asyncio.sleep(0.02)
    assert manager.receive() == ["WATCHDOG=1"]


async def test_a_watchdog_that_is_meant_for_another_process_gets_no_signs(manager: Manager) -> None:
    environment = {**manager.environment, "WATCHDOG_PID": str(os.getppid()), "WATCHDOG_USEC": "3000"}
    Supervisor(environment).ready("well")
    await asyncio.sleep(0.02)
    assert manager.receive()[0] == "READY=1"
    assert manager.silence()


async def test_nothing_is_sent_without_systemd_and_an_unresponsive_one_does_no_harm(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000000"}):
        supervisor = Supervisor(environment)
        supervisor.ready("well")
        supervisor.stopping("well")


def renew(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run certbot's hook with a `systemctl` that notes its arguments."""
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n')
    (folder / "systemctl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RENEWED_LINEAGE": str(folder)}
    command: list[str | Path] = ["sh", ROOT / "deploy" / "haproxy" / "renewed.sh", folder / "samovar.pem"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_renewed_certificate_reaches_haproxy_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "fullchain.pem").write_text("chain\n")
    (tmp_path / "privkey.pem").write_text("key\n")
    assert renew(tmp_path).returncode == 0
    assert (tmp_path / "samovar.pem").read_text() == "chain\nkey\n"
    assert (tmp_path / "samovar.pem").stat().st_mode & 0o077 == 0
    (tmp_path / "privkey.pem").unlink()
    assert renew(tmp_path).returncode != 0
    assert (tmp_path / "samovar.pem").read_text() == "chain\nkey\n"
    assert (tmp_path / "calls").read_text() == "try-reload-or-restart haproxy\n"
