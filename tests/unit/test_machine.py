"""What the machine lets the pool use, with the limits of cgroups as containers and systemd set them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.config.machine import available_cores, total_memory

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The / of a machine of eight cores and 16 GiB, without limits."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("gateway.config.machine._siblings", str)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16 * GIB))
    return tmp_path


def limit(root: Path, group: str, **limits: str) -> None:
    """What the kernel shows of a cgroup."""
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in limits.items():
        (folder / f"{name}.max").write_text(f"{text}\n")


def member(root: Path, group: str) -> None:
    """The cgroup of this process, listed next to one of version 1."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/elsewhere\n0::/{group}\n")


def test_the_limits_of_a_systemd_unit_are_seen(root: Path) -> None:
    member(root, "system.slice/samovar.service")
    limit(root, "system.slice/samovar.service", cpu="400000 100000", memory=str(6 * GIB))
    assert available_cores(root=root) == 4
    assert total_memory(root=root) == 6 * GIB


def test_of_nested_limits_the_least_is_felt(root: Path) -> None:
    member(root, "system.slice/samovar.service")
    limit(root, "system.slice", cpu="250000 100000", memory=str(8 * GIB))
    limit(root, "system.slice/samovar.service", cpu="max 100000", memory="max")
    limit(root, "user.slice", cpu="100000 100000", memory=str(GIB))  # somebody else's
    assert available_cores(root=root) == 2
    assert total_memory(root=root) == 8 * GIB


@pytest.mark.parametrize("group", ["", "../../system.slice/docker-1.scope", "docker/1"])
def test_a_containers_limits_are_those_of_the_folder_that_it_sees(root: Path, group: str) -> None:
    member(root, group)
    limit(root, "", cpu="150000 100000", memory=str(2 * GIB))
    assert available_cores(root=root) == 1
    assert total_memory(root=root) == 2 * GIB


def test_without_limits_or_cgroups_the_whole_machine_is_there(root: Path) -> None:
    assert (available_cores(root=root), total_memory(root=root)) == (8, 16 * GIB)
    member(root, "system.slice/samovar.service")
    limit(root, "system.slice/samovar.service", cpu="50000 100000", memory=str(64 * GIB))
    assert (available_cores(root=root), total_memory(root=root)) == (1, 16 * GIB)
