"""Writes `bench.md`, `bench.json` and the plots to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from gateway.cli.bench import tables
from gateway.cli.bench.pictures import draw
from gateway.cli.bench.results import Results
from gateway.cli.language import Phrases
from gateway.config.other_load import BUSY

STEM: Final = "bench"


def write(results: Results, folder: Path, say: Phrases) -> list[Path]:
    """Write all files and return their paths. Raises OSError."""
    page, data = folder / f"{STEM}.md", folder / f"{STEM}.json"
    page.write_text("\n".join(_markdown(results, say)), encoding="utf-8")
    data.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return [page, data, *draw(results, folder, STEM)]


def _markdown(results: Results, say: Phrases) -> Iterator[str]:
    yield f"# {say('title')}\n"
    yield f"{tables.conditions(results, say)}\n"
    yield f"{tables.explanation(results, say)} {say('made')}\n"
    if results.conditions.others >= BUSY:
        yield f"**{say('busy', cores=results.conditions.others)}**\n"
    yield f"![{say('title')}]({STEM}.png)\n"
    for table in tables.tables(results, say):
        yield f"## {table.title}\n"
        yield _row(table.columns)
        yield _row(["---", *["--:"] * (len(table.columns) - 1)])
        yield from map(_row, table.rows)
        yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
