"""What `samovar chat` shows and reads: on a terminal with some colour and line editing, in a pipe plainly."""

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
except ImportError:  # not on Windows, and not in every Python: lines are then read as they come
    EDITING = False

PROMPT: Final = "> "
LONGEST_SEQUENCE: Final = 256
"""Characters of an unfinished escape sequence that are held back; one without an end can't swallow an answer."""
_SEQUENCE: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)")
_UNFINISHED: Final = r"(?:\x1b|(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*\x1b?)\Z"
_EITHER: Final = re.compile(f"{_SEQUENCE.pattern}|(?P<begun>{_UNFINISHED})")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainText:
    """Takes away all that could steer a terminal, from text that comes in pieces: only new lines and tabs stay."""

    def __init__(self) -> None:
        """Begin with nothing held back."""
        self._held = ""

    def feed(self, piece: str) -> str:
        """What of the text so far may be shown."""
        text = self._held + piece
        # From left to right: what follows an unfinished sequence belongs to it, what precedes a whole one is over.
        begun = next((match["begun"] for match in _EITHER.finditer(text) if match["begun"]), "")
        self._held = begun if len(begun) <= LONGEST_SEQUENCE else ""
        return _CONTROL.sub("", _SEQUENCE.sub("", text[: len(text) - len(self._held)]))

    def finish(self) -> str:
        """The rest, when nothing more comes."""
        rest, self._held = _CONTROL.sub("", self._held), ""
        return rest


def plain(text: str) -> str:
    """A whole text on one line, without what could steer a terminal."""
    return " ".join(_CONTROL.sub("", _SEQUENCE.sub("", text)).split())


class Screen:
    """Answers and what was asked for go to stdout; on a terminal the rest does so too, in a pipe to stderr."""

    def __init__(self) -> None:
        """Look at what stdin and stdout are."""
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._out = Console(highlight=False, markup=False, emoji=False)
        self._notes = self._out if self.interactive else Console(stderr=True, highlight=False, markup=False)
        self._coloured = self.interactive and self._out.color_system is not None and not self._out.no_color
        self._status = False
        if self.interactive and locale.setlocale(locale.LC_CTYPE) == "C":
            with suppress(locale.Error):  # else readline would take a Chinese character for three
                locale.setlocale(locale.LC_CTYPE, "C.UTF-8")

    def read(self) -> str:
        """A line that was typed. Raises EOFError at the end and KeyboardInterrupt."""
        if not self.interactive:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line
        # \001 and \002 tell readline what takes no room, so that it knows where the cursor is.
        return input(f"\001\033[1;36m\002{PROMPT}\001\033[0m\002" if self._coloured else PROMPT)

    def is_line_empty(self) -> bool:
        """Whether nothing was typed into the line that Ctrl-C ended."""
        return not EDITING or not readline.get_line_buffer()

    def text(self, text: str) -> None:
        """More of an answer, as it comes."""
        if text:
            self.clear_status()
            sys.stdout.write(text)
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """What was asked for."""
        self.clear_status()
        self._out.print(Text(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Something beside the answers."""
        self._beside(text, "dim")

    def error(self, text: str) -> None:
        """Something went wrong."""
        self._beside(text, "red")

    def status(self, text: str) -> None:
        """What is going on now: replaced by whatever comes next on a terminal, silent elsewhere."""
        if self.interactive and not self._out.is_dumb_terminal:
            self.clear_status()
            shown = Text(text, "dim", end="", overflow="ellipsis", no_wrap=True)
            shown.truncate(self._out.width - 1)
            self._out.print(shown, end="")
            self._status = True

    def waiting(self, text: str) -> None:
        """A status that matters in a pipe, too."""
        if self.interactive:
            self.status(text)
        else:
            self.note(text)

    def clear_status(self) -> None:
        """Take the status away."""
        if self._status:
            sys.stdout.write("\r\033[2K")
            sys.stdout.flush()
            self._status = False

    def _beside(self, text: str, style: str) -> None:
        self.clear_status()
        self._notes.print(Text(text, style), soft_wrap=True)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Take keys one by one for the whole chat, and give the terminal back as it was.

        Otherwise the terminal itself would take a Ctrl-D that is typed ahead for an end of file, which readline,
        looking later, never sees.
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
        """While an answer comes, keys are kept for the next line and not shown amid it; to be used within `in_use`."""
        if not self.interactive or not EDITING:
            yield
            return
        _set_keys(echo=False)
        try:
            yield
        finally:
            _set_keys(echo=True)  # readline shows what is typed only where it finds this on


def _set_keys(*, echo: bool) -> None:
    mode = termios.tcgetattr(sys.stdin)
    mode[3] = mode[3] & ~(termios.ICANON | termios.ECHO) | (termios.ECHO if echo else 0)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)


@contextmanager
def interrupts(to: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call `to`, which must be safe in a signal handler, instead of raising KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, lambda *_: to())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
