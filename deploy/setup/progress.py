"""Long commands made visible: one updating line on a terminal, a plain line now and then elsewhere, all in a log."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

PLAIN_LINE_SECONDS = 15.0
TAIL_LINES = 15

NINJA = re.compile(r"\[(\d+)/(\d+)\] ")
MAKE_PERCENT = re.compile(r"\[ *(\d+)%\] ")
BUILDING = re.compile(r"Building (?:wheel|editable) for (\S+)")
PHASES = (
    (re.compile(r"Collecting (\S+)"), "looking for {}"),
    (re.compile(r"Downloading (\S+)"), "downloading {}"),
    (re.compile(r"(?:Preparing|Getting) .*metadata"), "reading metadata"),
    (re.compile(r"Installing build dependencies"), "getting build tools"),
    (BUILDING, "building {}"),
    (re.compile(r"Installing collected packages"), "installing packages"),
    (re.compile(r"Get:\d+ \S+ \S+ \S+ ([^\s\[]+)"), "downloading {}"),
    (re.compile(r"(?:Unpacking|Setting up) (\S+)"), "installing {}"),
)


class CommandFailedError(Exception):
    """A command ended with an error; the message holds the end of its output and where all of it is."""


@dataclass(frozen=True)
class Step:
    """Where a command is: words for it and, where the command counts, how much of the step is done (0 to 1)."""

    text: str
    share: float | None = None


class OutputReader:
    """Turns the lines that pip, ninja, make and apt print into steps. No clock, no screen."""

    def __init__(self) -> None:
        self.step = Step("starting")
        self._building = "a package"

    def feed(self, line: str) -> None:
        """Take the next line of output; `step` says afterwards where the command is."""
        line = line.strip()
        if counted := NINJA.match(line):
            done, total = int(counted[1]), int(counted[2])
            self.step = Step(f"compiling {self._building}, {done} of {total}", done / total if total else None)
        elif counted := MAKE_PERCENT.match(line):
            self.step = Step(f"compiling {self._building}, {counted[1]} %", int(counted[1]) / 100)
        else:
            self._enter_phase(line)

    def _enter_phase(self, line: str) -> None:
        for pattern, words in PHASES:
            if found := pattern.match(line):
                if pattern is BUILDING:
                    self._building = found[1]
                self.step = Step(words.format(*found.groups()))
                return


class Display:
    """Shows steps on a stream: redrawn in place on a terminal, else a line at most every 15 s."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._started = self._shown = clock()
        self._live = out.isatty()

    def show(self, step: Step) -> None:
        """Show a step if it is time to."""
        now = self._clock()
        if self._live:
            line = f"  {self._elapsed()}  {bar(step.share)}{step.text}"
            self._write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        elif now - self._shown >= PLAIN_LINE_SECONDS:
            self._shown = now
            self._write(f"  {self._elapsed()}  {step.text}\n")

    def end(self, words: str) -> None:
        """Close with a last line."""
        self._write(("\r\x1b[K" if self._live else "") + f"  {self._elapsed()}  {words}\n")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        return f"{minutes}:{seconds:02}"

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def bar(share: float | None, width: int = 24) -> str:
    """A progress bar for a share between 0 and 1, and nothing where there is none."""
    if share is None:
        return ""
    full = round(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] "


def run(
    command: list[str], log: Path, out: TextIO, *, done: str, on_line: Callable[[str], None] = lambda _: None
) -> None:
    """Run a command to its end, showing its progress on `out` and appending all of its output to `log`.

    `on_line` sees every line. Raises CommandFailedError. An interrupt ends the command's whole process group first,
    because a compiler that goes on in the background would fight with the next attempt.
    """
    reader, display = OutputReader(), Display(out)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as record:
        record.write(f"\n{_typed(command)}\n".encode())
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        ) as process:
            try:
                _follow(process, record, display, reader, on_line)
            except BaseException:
                display.end("stopped")
                _end_group(process)
                raise
    if process.returncode:
        display.end("failed")
        raise CommandFailedError(_explain(command, process.returncode, log))
    display.end(done)


def _follow(
    process: subprocess.Popen[bytes],
    record: IO[bytes],
    display: Display,
    reader: OutputReader,
    on_line: Callable[[str], None],
) -> None:
    """Copy output to the record as it comes, and keep the display moving while none does."""
    output = cast("IO[bytes]", process.stdout)  # a pipe was asked for
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=0.5):
                data = os.read(output.fileno(), 1 << 16)
                if not data:
                    break
                record.write(data)
                record.flush()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace")
                    reader.feed(text)
                    on_line(text)
            display.show(reader.step)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a command and its children to end, then make those that are left. dpkg needs a while to end in order."""
    for number, patience in ((signal.SIGINT, 30), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):  # gone, or sudo's
            os.killpg(process.pid, number)
            process.wait(patience)


def _explain(command: list[str], code: int, log: Path) -> str:
    """The message for a command that failed: the end of its log, and a mend where the reason is a common one."""
    text = log.read_text(errors="replace")
    output = text[text.rindex(f"\n{_typed(command)}\n") :]
    lines = [line[:200] for line in output.splitlines()[2:] if line.strip() and not PIPS_OWN_WORDS.match(line)]
    words = [f"    {line}" for line in lines[-TAIL_LINES:]]
    words.append(f"This failed, with exit code {code}:  {_typed(command)[:100]}")
    words.append(f"All of its output is in {os.path.relpath(log)}")
    words += [mend for sign, mend in KNOWN_REASONS if sign in output]
    return "\n".join(words)


def _typed(command: list[str]) -> str:
    """A command as it would be typed, the program by its name alone."""
    return shlex.join([Path(command[0]).name, *command[1:]])


# Around a package's own error pip wraps some lines about itself, and repeats them for each layer.
PIPS_OWN_WORDS = re.compile(r"\s*(?:full command:|cwd:|note: |[│╰×]|error: subprocess-exited)")
KNOWN_REASONS = (
    ("Killed signal", "The compiler ran out of memory. Build with one job:  CMAKE_BUILD_PARALLEL_LEVEL=1 make serve"),
    (
        "No space left on device",
        "The disk is full: about 1 GB is needed in this folder, and as much for temporary files.",
    ),
    ("(from versions: none)", "The network was not reached, or not the package index. Only set-up needs it."),
)
