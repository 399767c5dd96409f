"""`python -m grafana [FOLDER]`: write the dashboards, by default to `dashboards/`, where Grafana loads them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from grafana.dashboard import dashboard
from grafana.words import chinese, english

FOLDER: Final = Path(__file__).parent / "dashboards"
BOARDS: Final = {"samovar": english, "samovar-zh": chinese}
"""Translation function by uid, which is also the name of the file."""


def main(folder: Path) -> None:
    """Write each dashboard and print its path."""
    for uid, say in BOARDS.items():
        path = folder / f"{uid}.json"
        path.write_text(dashboard(uid, say), "utf-8")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
