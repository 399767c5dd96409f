"""`samovar top [--url URL] [--every SECONDS]`: show live metrics of a gateway: queue, speed, engines, cache"""

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
except ImportError:  # Windows: only Ctrl-C quits
    KEYS = False

SETTINGS: Final = ("host", "port", "tls_cert", "api_key")
SNAPSHOT_SECONDS: Final = 1.0
"""Seconds between the two readings from which rates are computed for a pipe."""
QUIT_KEYS: Final = set("qQ\x04")
WORDS: Final = {
    **TEXTS,
    "unreachable": (
        "no metrics at {url} ({reason}); set the gateway with --url or --port, an API key with SAMOVAR_API_KEY",
        "无法从 {url} 读取指标（{reason}）；请用 --url 或 --port 指定网关，用 SAMOVAR_API_KEY 提供 API 密钥",
    ),
    "tls": ("tls_cert: {reason}", "tls_cert：{reason}"),
}


def arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--url", type=_url, metavar="URL", help="address of the gateway, instead of --host and --port")
    parser.add_argument(
        "--every", type=_pause, default=2.0, metavar="SECONDS", help="seconds between readings; default 2"
    )


def run(settings: Settings, options: Namespace) -> int:
    """Show the metrics until q or Ctrl-C; in a pipe, print them once. Raises CommandError."""
    say = Phrases(WORDS, chinese=is_chinese())
    try:
        source = Source(options.url or settings.url, key=settings.api_key, tls=pinned(settings.tls_cert))
    except (OSError, ValueError) as error:
        raise CommandError(say("tls", reason=error)) from error
    board = Board(source.url, say)
    try:
        board.add(source.read(time.monotonic()))
        if sys.stdout.isatty():
            with suppress(KeyboardInterrupt):
                _watch(board, source, options.every, say)
        else:
            time.sleep(SNAPSHOT_SECONDS)
            board.add(source.read(time.monotonic()))
            Console(highlight=False, emoji=False, width=120).print(board.render("", since=Reading()))
    except UnreadableError as error:
        raise CommandError(say("unreachable", url=source.url, reason=plain(str(error)))) from error
    return 0


def _watch(board: Board, source: Source, every: float, say: Phrases) -> None:
    status = say("live")
    console = Console(highlight=False, emoji=False)
    with Live(board.render(status), console=console, screen=True, auto_refresh=False) as live, _keyboard() as pressed:
        while not QUIT_KEYS & set(pressed(every)):
            try:
                board.add(source.read(time.monotonic()))
                status = say("live")
            except UnreadableError as error:  # the gateway restarts, or the network is down: keep trying
                status = say("away", reason=plain(str(error)))
            live.update(board.render(status), refresh=True)


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits the given seconds for keys and returns them. Restores the terminal afterwards."""
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
    """Return the keys pressed within `seconds`. Bypasses Python's buffer, which `select` does not see."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 64).decode(errors="replace") or "q"  # end of file: the terminal is closed


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentTypeError(f"{text} is not an address such as http://127.0.0.1:8000")
    return text


def _pause(text: str) -> float:
    with suppress(ValueError):
        if 0.2 <= (pause := float(text)) <= 3600:
            return pause
    raise ArgumentTypeError(f"{text} is not between 0.2 and 3600 seconds")
