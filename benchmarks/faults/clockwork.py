"""`samovar` with a clock that jumps: `python -m benchmarks.faults.clockwork FILE serve …`.

Shifts the time of day of this process by the number of seconds in FILE. Nothing else on the machine is affected.
Engines use the true time, so that the two clocks differ as well.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def jump(file: Path) -> None:
    """Shift `time.time` by the number of seconds in `file`, from now on."""
    true = time.time

    def jumping() -> float:
        try:
            return true() + float(file.read_text() or 0)
        except (OSError, ValueError):  # the file is being written
            return true()

    time.time = jumping


def main() -> int:
    """Run the command line."""
    jump(Path(sys.argv[1]))
    from gateway.cli import main as samovar  # after the patch, because modules bind the clock on import

    return samovar(sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
