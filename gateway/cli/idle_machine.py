"""Waits until other processes leave the machine to a measurement."""

from __future__ import annotations

from typing import Final

from rich.console import Console

from gateway.cli.language import Phrases
from gateway.config.other_load import wait_until_idle

WAIT: Final = 30.0
"""Maximum seconds of waiting."""
TEXTS: Final = {
    "measuring": ("measuring", "测量中"),
    "waiting": ("waiting: other processes keep {cores:.1f} cores busy", "等待中：其他进程占用了 {cores:.1f} 个核心"),
}


def wait_for_idle_machine(console: Console, *, chinese: bool) -> float:
    """Wait until other processes are idle, at most WAIT seconds, and show why; return the cores that they use then."""
    say = Phrases(TEXTS, chinese=chinese)
    with console.status(say("measuring")) as status:
        return wait_until_idle(WAIT, lambda cores: status.update(say("waiting", cores=cores)))
