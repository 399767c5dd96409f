"""`sh deploy/setup.sh STAGE [-- COMMAND …]`: make everything ready for a stage, then become the command.

Stages: `run` installs the project, `dev` its Python test tools too, `test` also what the tests need of Debian;
`lock` writes constraints.txt anew and installs nothing. A second time nothing is done, and no pip is started.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from deploy.setup import needs
from deploy.setup.environment import Environment
from deploy.setup.lock import write_constraints
from deploy.setup.progress import CommandFailedError, run

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("run", "dev", "test", "lock")


class SetupError(Exception):
    """Set-up cannot go on until the user has done what the message says."""


def main(arguments: list[str]) -> int:
    """Run one stage and return the exit code, unless the process becomes the command."""
    if not arguments or arguments[0] not in STAGES or arguments[1:2] not in ([], ["--"]):
        print(__doc__, file=sys.stderr)
        return 2
    stage, command = arguments[0], arguments[2:]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        if stage == "lock":
            write_constraints(ROOT, sys.stdout)
        else:
            make_ready(stage, Environment(ROOT, ROOT / ".venv"))
    except (SetupError, CommandFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        print(f"Set-up cannot go on: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        # A Ctrl-C typed on a terminal has reached `make` as well, which says nothing only if its command ends well.
        return 0 if sys.stdin.isatty() else 130
    if command:
        os.execvp(command[0], command)  # noqa: S606 - the command is the Makefile's
    return 0


def leave(number: int, _: FrameType | None) -> None:
    """Signal handler: end as a shell reports it, after the commands that run have been ended."""
    raise SystemExit(128 + number)


def make_ready(stage: str, environment: Environment) -> None:
    """Install what the stage needs and is not there yet. Raises SetupError and CommandFailedError."""
    tests = stage in ("dev", "test")
    missing = needs.to_test() if stage == "test" else []
    ready = environment.is_ready(tests=tests)
    if not ready and not (environment.is_usable() and environment.has_engine()):
        missing = [*needs.to_install(), *missing]
    if missing:
        prefix = needs.root_prefix() if stage == "test" else None
        if prefix is None:
            raise SetupError(needs.advice(missing))
        install_by_apt(missing, prefix, environment.log)
    if ready:
        return
    with only_one(environment.folder):
        if environment.is_ready(tests=tests):  # by the set-up that was waited for
            return
        usable = environment.is_usable()
        announce(compiling=not (usable and environment.has_engine()))
        if not usable:
            environment.create()
        environment.install(sys.stdout, tests=tests)


def install_by_apt(packages: list[str], prefix: list[str], log: Path) -> None:
    """Install Debian packages with root's rights, which the prefix gives. Raises CommandFailedError."""
    print(f"Installing what the tests need, by apt: {', '.join(packages)}.", flush=True)
    quiet = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    done = f"installed {', '.join(packages)}"
    commands = needs.apt_commands(packages, quiet)
    try:
        for command in commands:
            run(command, log, sys.stdout, done=done if command is commands[-1] else "package lists are there")
    except CommandFailedError:
        if len(commands) > 1:
            raise
        # Lists that are older than the mirror name files that are gone.
        run([*quiet, "apt-get", "update"], log, sys.stdout, done="package lists are fresh")
        run(commands[-1], log, sys.stdout, done=done)


def announce(*, compiling: bool) -> None:
    """Say before it begins what will take long."""
    if not compiling:
        print("Bringing .venv up to date.", flush=True)
        return
    cores = len(os.sched_getaffinity(0))
    print(
        "Installing Samovar into .venv, the first time only. llama-cpp-python is compiled for this processor:\n"
        f"about 4 minutes on 2 cores; this machine has {cores}. Ctrl-C stops, the same command goes on.\n"
        f"首次安装会为本机处理器编译 llama-cpp-python:双核约 4 分钟,本机 {cores} 核;以后启动只需几秒。",
        flush=True,
    )


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one set-up at a time work on a folder; another one waits, and says so."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up of this folder is running. Waiting for it to end.", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
