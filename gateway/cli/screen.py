"""Input and output of `samovar chat`: colour and line editing on a terminal, plain text in a pipe."""

from __future__ import annotations

import locale
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import Console
from rich.text import Text

try:
    import readline
    import termios

    EDITING = True
except ImportError:  # missing on Windows and in some Python builds: lines are then read without editing
    EDITING = False

PROMPT: Final = "> "
LONGEST_SEQUENCE: Final = 256
"""Characters of an unfinished escape sequence to hold back, so that one without an end cannot swallow an answer."""
_SEQUENCE: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)")
_UNFINISHED: Final = r"(?:\x1b|(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*\x1b?)\Z"
_EITHER: Final = re.compile(f"{_SEQUENCE.pattern}|(?P<unfinished>{_UNFINISHED})")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainText:
    """Removes escape sequences and control characters from streamed text; only new lines and tabs remain."""

    def __init__(self) -> None:
        """Start with nothing held back."""
        self._held = ""

    def feed(self, piece: str) -> str:
        """Add `piece` and return the text that may be shown now."""
        text = self._held + piece
        # Scan from left to right: text after an unfinished sequence belongs to it, complete sequences have ended.
        unfinished = next((match["unfinished"] for match in _EITHER.finditer(text) if match["unfinished"]), "")
        self._held = unfinished if len(unfinished) <= LONGEST_SEQUENCE else ""
        return _CONTROL.sub("", _SEQUENCE.sub("", text[: len(text) - len(self._held)]))

    def finish(self) -> str:
        """Return the text held back; to be called at the end of the stream."""
        rest, self._held = _CONTROL.sub("", self._held), ""
        return rest


def plain(text: str) -> str:
    """Return `text` on one line, without escape sequences and control characters."""
    return " ".join(_CONTROL.sub("", _SEQUENCE.sub("", text)).split())


class Screen:
    """Prints answers and the output of commands to stdout, notes and errors to stderr (on a terminal: to stdout)."""

    def __init__(self) -> None:
        """Detect whether stdin and stdout are a terminal."""
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._out = Console(highlight=False, markup=False, emoji=False)
        self._notes = self._out if self.interactive else Console(stderr=True, highlight=False, markup=False)
        self._coloured = self.interactive and self._out.color_system is not None and not self._out.no_color
        self._status = False
        if self.interactive and locale.setlocale(locale.LC_CTYPE) == "C":
            with suppress(locale.Error):  # otherwise readline counts a Chinese character as three
                locale.setlocale(locale.LC_CTYPE, "C.UTF-8")

    def read(self) -> str:
        """Read a line of input. Raises EOFError at the end of input, and KeyboardInterrupt."""
        if not self.interactive:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line
        # \001 and \002 mark characters of zero width for readline, which tracks the cursor.
        return input(f"\001\033[1;36m\002{PROMPT}\001\033[0m\002" if self._coloured else PROMPT)

    def is_line_empty(self) -> bool:
        """Return whether the line that Ctrl-C ended was empty."""
        return not EDITING or not readline.get_line_buffer()

    def text(self, text: str) -> None:
        """Print the next piece of an answer."""
        if text:
            self.clear_status()
            sys.stdout.write(text)
            sys.stdout.flush()

    def thought(self, text: str) -> None:
        """Print the next piece of the model's reasoning, dim; print nothing into a pipe, which gets the answer only."""
        if self.interactive:
            self.text(f"\033[2m{text}\033[22m" if self._coloured and text else text)

    def line(self, text: str) -> None:
        """Print the output of a command."""
        self.clear_status()
        self._out.print(Text(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a note."""
        self._print_note(text, "dim")

    def error(self, text: str) -> None:
        """Print an error."""
        self._print_note(text, "red")

    def status(self, text: str) -> None:
        """Show the current status on a terminal, until the next output replaces it; do nothing in a pipe."""
        if self.interactive and not self._out.is_dumb_terminal:
            self.clear_status()
            shown = Text(text, "dim", end="", overflow="ellipsis", no_wrap=True)
            shown.truncate(self._out.width - 1)
            self._out.print(shown, end="")
            self._status = True

    def waiting(self, text: str) -> None:
        """Show a status on a terminal; print it as a note in a pipe."""
        if self.interactive:
            self.status(text)
        else:
            self.note(text)

    def clear_status(self) -> None:
        """Remove the status from the terminal."""
        if self._status:
            sys.stdout.write("\r\033[2K")
            sys.stdout.flush()
            self._status = False

    def _print_note(self, text: str, style: str) -> None:
        self.clear_status()
        self._notes.print(Text(text, style), soft_wrap=True)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Read single keys for the duration of the chat, and restore the terminal afterwards.

        Otherwise the terminal would turn a Ctrl-D typed ahead into an end of file, which readline, reading later,
        never sees.
        """
        if not self.interactive or not EDITING:
            yield
            return
        before = termios.tcgetattr(sys.stdin)
        _set_keys(echo=True)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Buffer keys for the next line without echo while an answer arrives; to be used within `in_use`."""
        if not self.interactive or not EDITING:
            yield
            return
        _set_keys(echo=False)
        try:
            yield
        finally:
            _set_keys(echo=True)  # readline echoes input only if it finds echo enabled


def _set_keys(*, echo: bool) -> None:
    mode = termios.tcgetattr(sys.stdin)
    mode[3] = mode[3] & ~(termios.ICANON | termios.ECHO) | (termios.ECHO if echo else 0)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)


@contextmanager
def interrupts(to: Callable[[], None]) -> Iterator[None]:
    """Call `to`, which must be safe in a signal handler, on Ctrl-C instead of raising KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, lambda *_: to())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
