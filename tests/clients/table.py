"""The table of clients in docs/clients.md."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tests import ROOT

COLUMNS: Final = ("conversation", "tools", "JSON", "streaming", "WebSocket")


class Row(NamedTuple):
    """A client: the versions that were seen, and what it did."""

    versions: dict[str, str]
    seen: set[str]


def rows() -> dict[str, Row]:
    """Return the rows of the table, by the script or test in `tests/clients/` that was seen to pass."""
    text = (ROOT / "docs" / "clients.md").read_text()
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(COLUMNS) + 3 and (script := re.search(r"\]\(\.\./tests/clients/([\w./-]+)\)", cells[0])):
            versions = dict(re.findall(r"`([^`\s]+) ([\d.]+)`", cells[1]))
            ticks = {column for column, cell in zip(COLUMNS, cells[2:-1], strict=True) if cell == "✓"}
            found[script[1]] = Row(versions, ticks)
    return found
