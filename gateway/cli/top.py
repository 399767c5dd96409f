"""`samovar top [--url URL] [--every SECONDS]`: what a gateway does now, live: queue, speed, engines, cache"""

from __future__ import annotations

import os
import select
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live

from gateway.cli import CommandError
from gateway.cli.arguments import Parser
from gateway.cli.board import TEXTS, Board
from gateway.cli.client import pinned
from gateway.cli.language import Phrases, is_chinese
from gateway.cli.readings import Reading, Source, UnreadableError
from gateway.cli.screen import plain
from gateway.config.settings import Settings

try:
    import termios
    import tty

    KEYS = True
except ImportError:  # not on Windows: Ctrl-C leaves there
    KEYS = False

SETTINGS: Final = ("host", "port", "tls_cert", "api_key")
SNAPSHOT_SECONDS: Final = 1.0
"""Between the two readings that a pipe's speeds are told from."""
LEAVE: Final = set("qQ\x04")
WORDS: Final = {
    **TEXTS,
    "nobody": (
        "no gateway tells its figures at {url} ({reason}); name it with --url or --port, a key with SAMOVAR_API_KEY",
        "{url} 没有给出指标（{reason}）；请用 --url 或 --port 指定网关，用 SAMOVAR_API_KEY 给出密钥",
    ),
    "tls": ("tls_cert: {reason}", "tls_cert：{reason}"),
}


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--url", type=_url, metavar="URL", help="the gateway's address, instead of --host and --port")
    parser.add_argument("--every", type=_pause, default=2.0, metavar="SECONDS", help="how often it is asked; 2")


def run(settings: Settings, options: Namespace) -> int:
    """Show it until q or Ctrl-C; in a pipe, once. Raises CommandError."""
    say = Phrases(WORDS, chinese=is_chinese())
    try:
        source = Source(options.url or settings.url, key=settings.api_key, tls=pinned(settings.tls_cert))
    except (OSError, ValueError) as error:
        raise CommandError(say("tls", reason=error)) from error
    board = Board(source.url, say)
    try:
        board.take(source.read(time.monotonic()))
        if sys.stdout.isatty():
            with suppress(KeyboardInterrupt):
                _watch(board, source, options.every, say)
        else:
            time.sleep(SNAPSHOT_SECONDS)
            board.take(source.read(time.monotonic()))
            Console(highlight=False, emoji=False, width=120).print(board.drawn("", since=Reading()))
    except UnreadableError as error:
        raise CommandError(say("nobody", url=source.url, reason=plain(str(error)))) from error
    return 0


def _watch(board: Board, source: Source, every: float, say: Phrases) -> None:
    status = say("live")
    console = Console(highlight=False, emoji=False)
    with Live(board.drawn(status), console=console, screen=True, auto_refresh=False) as live, _keyboard() as pressed:
        while not LEAVE & set(pressed(every)):
            try:
                board.take(source.read(time.monotonic()))
                status = say("live")
            except UnreadableError as error:  # it restarts, or the network is away: it comes back
                status = say("away", reason=plain(str(error)))
            live.update(board.drawn(status), refresh=True)


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Waits so many seconds for keys, and gives them. The terminal is given back as it was."""
    if not KEYS or not sys.stdin.isatty():
        yield _sleep
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin, termios.TCSANOW)
    try:
        yield _keys
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _keys(seconds: float) -> str:
    """Read past Python's own buffer, which `select` does not see."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 64).decode(errors="replace") or "q"  # nothing: the terminal is gone


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentTypeError(f"{text} is no address such as http://127.0.0.1:8000")
    return text


def _pause(text: str) -> float:
    with suppress(ValueError):
        if 0.2 <= (pause := float(text)) <= 3600:
            return pause
    raise ArgumentTypeError("between 0.2 and 3600 seconds")
