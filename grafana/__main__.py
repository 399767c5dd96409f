"""`python -m grafana [FOLDER]`: write the boards, by default where Grafana is provisioned from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from grafana.dashboard import dashboard
from grafana.words import chinese, english

FOLDER: Final = Path(__file__).parent / "dashboards"
BOARDS: Final = {"samovar": english, "samovar-zh": chinese}
"""By uid, which is the name of the file, too."""


def main(folder: Path) -> None:
    """Write each board and say where it is."""
    for uid, say in BOARDS.items():
        path = folder / f"{uid}.json"
        path.write_text(dashboard(uid, say), "utf-8")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
