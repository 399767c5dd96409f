"""Progress of long commands: one updating line on a terminal, otherwise a line now and then, and a full log."""

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
    """A command failed; the message has the end of its output and the path of the log."""


@dataclass(frozen=True)
class Step:
    """Current step of a command: a text and, if the command reports it, the completed share (0 to 1)."""

    text: str
    share: float | None = None


class OutputReader:
    """Parses output of pip, ninja, make and apt into steps. Uses no clock and no screen."""

    def __init__(self) -> None:
        self.step = Step("starting")
        self._building = "a package"

    def feed(self, line: str) -> None:
        """Parse the next line of output and update `step`."""
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
    """Shows steps on a stream: redrawn in place on a terminal, otherwise at most one line every 15 s."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._started = self._shown = clock()
        self._live = out.isatty()

    def show(self, step: Step) -> None:
        """Show a step if it is due."""
        now = self._clock()
        if self._live:
            line = f"  {self._elapsed()}  {bar(step.share)}{step.text}"
            self._write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        elif now - self._shown >= PLAIN_LINE_SECONDS:
            self._shown = now
            self._write(f"  {self._elapsed()}  {step.text}\n")

    def end(self, words: str) -> None:
        """Print the last line."""
        self._write(("\r\x1b[K" if self._live else "") + f"  {self._elapsed()}  {words}\n")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        return f"{minutes}:{seconds:02}"

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def bar(share: float | None, width: int = 24) -> str:
    """Return a progress bar for a share between 0 and 1; "" for None."""
    if share is None:
        return ""
    full = round(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] "


def run(
    command: list[str], log: Path, out: TextIO, *, done: str, on_line: Callable[[str], None] = lambda _: None
) -> None:
    """Run a command, show its progress on `out` and append its output to `log`.

    `on_line` is called with every line. Raises CommandFailedError. An interrupt first stops the command's whole process
    group, because a compiler left in the background would conflict with the next attempt.
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
    """Copy output to `record` as it arrives, and update the display twice a second."""
    output = cast("IO[bytes]", process.stdout)  # not None: stdout is a pipe
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
    """Interrupt a command and its children, then kill the rest. dpkg needs a while to stop cleanly."""
    for number, patience in ((signal.SIGINT, 30), (signal.SIGKILL, None)):
        with suppress(
            ProcessLookupError, PermissionError, subprocess.TimeoutExpired
        ):  # already gone, or owned by root (sudo)
            os.killpg(process.pid, number)
            process.wait(patience)


def _explain(command: list[str], code: int, log: Path) -> str:
    """Return the message for a failed command: the end of its output, and a fix for common reasons."""
    text = log.read_text(errors="replace")
    output = text[text.rindex(f"\n{_typed(command)}\n") :]
    lines = [line[:200] for line in output.splitlines()[2:] if line.strip() and not PIPS_OWN_WORDS.match(line)]
    words = [f"    {line}" for line in lines[-TAIL_LINES:]]
    words.append(f"Failed with exit code {code}:  {_typed(command)[:100]}")
    words.append(f"The full output is in {os.path.relpath(log)}")
    words += [fix for pattern, fix in KNOWN_REASONS if pattern in output]
    return "\n".join(words)


def _typed(command: list[str]) -> str:
    """Return the command as it would be typed, with the program's name instead of its path."""
    return shlex.join([Path(command[0]).name, *command[1:]])


# pip adds lines about itself around a package's error message, repeated for each layer.
PIPS_OWN_WORDS = re.compile(r"\s*(?:full command:|cwd:|note: |[│╰×]|error: subprocess-exited)")
KNOWN_REASONS = (
    ("Killed signal", "The compiler ran out of memory. Build with one job:  CMAKE_BUILD_PARALLEL_LEVEL=1 make serve"),
    (
        "No space left on device",
        "The disk is full: free about 1 GB in this folder, and as much for temporary files.",
    ),
    ("(from versions: none)", "The package index was not reachable. Check the network; only set-up needs it."),
)
