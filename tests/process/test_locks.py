"""A state folder on a file system without file locks, as NFS without a lock service, made by failing lock calls."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cache import supports_locks
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR

NO_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#define WITHOUT_LOCKS(name)                                                  \
    int name(int fd, int command, ...) {                                     \
        va_list rest;                                                        \
        va_start(rest, command);                                             \
        void *argument = va_arg(rest, void *);                               \
        if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) \
            return errno = ENOLCK, -1;                                       \
        int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #name);                \
        return real(fd, command, argument);                                  \
    }
WITHOUT_LOCKS(fcntl)
WITHOUT_LOCKS(fcntl64)
"""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose locks all fail with ENOLCK."""
    library = tmp_path_factory.mktemp("locks") / "no_locks.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=NO_LOCKS, text=True, check=True)
    return {**CHILD_ENVIRONMENT, "LD_PRELOAD": str(library)}


def test_a_local_disk_supports_locks(tmp_path: Path) -> None:
    assert supports_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [["serve", "--port=0"], ["keys", "add", "anna"], ["doctor", "--port=0"]])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, tiny_model: Path, no_locks: dict[str, str], command: list[str]
) -> None:
    model = [] if command[0] == "keys" else [f"--model={tiny_model}"]
    arguments = [*SAMOVAR, *command, *model, f"--state-dir={tmp_path}"]
    run = subprocess.run(arguments, env=no_locks, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "supports no file locks" in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
