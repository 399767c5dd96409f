"""`sh deploy/setup.sh STAGE [-- COMMAND …]`: install everything for a stage, then execute the command.

Stages: `run` installs the project, `dev` also the Python test tools, `test` also the Debian packages for the tests;
`lock` rewrites constraints.txt and installs nothing. If everything is installed, a stage does nothing and runs no pip.
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
    """The user has to do something first; the message says what."""


def main(arguments: list[str]) -> int:
    """Run one stage. Return the exit code, or execute the command in place of this process."""
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
        print(f"Set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to continue.", file=sys.stderr)
        # A Ctrl-C on a terminal also reaches `make`, which prints an error unless its command exits with 0.
        return 0 if sys.stdin.isatty() else 130
    if command:
        os.execvp(command[0], command)  # noqa: S606 - the command is the Makefile's
    return 0


def leave(number: int, _: FrameType | None) -> None:
    """Signal handler: stop running commands, then exit with the code that a shell uses for the signal."""
    raise SystemExit(128 + number)


def make_ready(stage: str, environment: Environment) -> None:
    """Install what the stage needs and is missing. Raises SetupError and CommandFailedError."""
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
        if environment.is_ready(tests=tests):  # by the set-up that held the lock
            return
        usable = environment.is_usable()
        announce(compiling=not (usable and environment.has_engine()))
        if not usable:
            environment.create()
        environment.install(sys.stdout, tests=tests)


def install_by_apt(packages: list[str], prefix: list[str], log: Path) -> None:
    """Install Debian packages as root through the command prefix. Raises CommandFailedError."""
    print(f"Installing with apt what the tests need: {', '.join(packages)}.", flush=True)
    quiet = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    done = f"installed {', '.join(packages)}"
    commands = needs.apt_commands(packages, quiet)
    try:
        for command in commands:
            run(command, log, sys.stdout, done=done if command is commands[-1] else "fetched package lists")
    except CommandFailedError:
        if len(commands) > 1:
            raise
        # Outdated package lists name files that the mirror no longer has.
        run([*quiet, "apt-get", "update"], log, sys.stdout, done="updated package lists")
        run(commands[-1], log, sys.stdout, done=done)


def announce(*, compiling: bool) -> None:
    """Print what takes long before it starts."""
    if not compiling:
        print("Bringing .venv up to date.", flush=True)
        return
    cores = len(os.sched_getaffinity(0))
    print(
        "First installation into .venv: llama-cpp-python is compiled for this CPU, which takes about 4 minutes\n"
        f"on 2 cores; this machine has {cores}. Press Ctrl-C to stop, run the same command again to continue.\n"
        f"首次安装会为本机处理器编译 llama-cpp-python：双核约 4 分钟，本机 {cores} 核；以后启动只需几秒。",
        flush=True,
    )


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. If another set-up holds it, print that and wait."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up of this folder is running. Waiting for it to finish.", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
