"""What child processes that run llama.cpp have in common."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """That of this process, without the backtrace of a crash: that starts a debugger which outlives everybody."""
    return {**os.environ, "GGML_NO_BACKTRACE": "1"}
