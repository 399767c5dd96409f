"""`samovar` with a clock that jumps: `python -m benchmarks.faults.clockwork FILE serve …`.

The time of day of this process alone is that of the machine and as many seconds more as FILE says at that moment.
Nothing else of the machine is touched; engines keep the true time, so that the two clocks differ as well.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def jump(file: Path) -> None:
    """Let the clock follow `file`, for whoever asks for the time from now on."""
    true = time.time

    def jumping() -> float:
        try:
            return true() + float(file.read_text() or 0)
        except (OSError, ValueError):  # in the middle of being written
            return true()

    time.time = jumping


def main() -> int:
    """Run the command line."""
    jump(Path(sys.argv[1]))
    from gateway.cli import main as samovar  # only now, as modules take the clock when they are imported

    return samovar(sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
