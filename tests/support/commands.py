"""Runs `samovar` inside the test process, for tests that need what a command does, and not its process."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

from gateway.cli import main


def keys(state: Path, *arguments: str) -> str:
    """Return what `samovar keys` prints for this state folder.

    The command runs in a thread, because it starts an event loop, and a test may have one already. A process of its own
    would take half a second more, most of it for imports.
    """
    output = io.StringIO()
    with redirect_stdout(output), ThreadPoolExecutor(1) as pool:
        code = pool.submit(main, ["keys", *arguments, f"--state-dir={state}"]).result()
    assert code == 0, arguments
    return output.getvalue().strip()
