"""Types lines into a program on a separate terminal, each after the program has stopped printing."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

QUIET_SECONDS = 1.0
END_OF_INPUT = "\x04"


def type_lines(command: list[str], lines: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str]:
    """Run a command on a terminal, type the lines and then Ctrl-D; return its exit code and the output.

    The first line is typed when something is on the screen, such as a prompt. Raises subprocess.TimeoutExpired, and
    ends the command, if it takes longer than `timeout` seconds.
    """
    keyboard, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=cwd, env=env, start_new_session=True
    )
    os.close(terminal)
    waiting, screen, deadline = [*lines, END_OF_INPUT], b"", time.monotonic() + timeout
    try:
        while (seen := _look(keyboard)) != b"":
            screen += seen or b""
            if seen is None and screen and waiting:
                os.write(keyboard, waiting.pop(0).encode())
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(command, timeout, screen)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        os.close(keyboard)
        process.wait()
    return process.returncode, screen.decode(errors="replace").replace("\r", "")


def _look(keyboard: int) -> bytes | None:
    """Return new output; None if there was none for a while, b"" when the program has exited."""
    if not select.select([keyboard], [], [], QUIET_SECONDS)[0]:
        return None
    try:
        return os.read(keyboard, 1 << 16)
    except OSError:  # Linux reports a terminal that no process has open as an input error
        return b""
