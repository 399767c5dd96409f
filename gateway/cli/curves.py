"""Throughput curves of a cost model as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.text import Text

from engine import WIDEST, CostModel

HEIGHT: Final = 12
STEP: Final = 3
"""Columns per answer on the horizontal axis."""


def curves(plan: CostModel) -> Iterator[Text]:
    """Yield the chart's lines from top to bottom: total tokens per second by number of concurrent answers.

    Each digit is a number of engines. The chosen number is bold and covers others at the same height.
    """
    rates = {times.engines: [plan.rate(times.engines, n) for n in range(1, WIDEST + 1)] for times in plan.times}
    chosen = [plan.engines(n, working=0) for n in range(1, WIDEST + 1)]
    most = max(max(curve) for curve in rates.values())
    rows = [[Text(" ") for _ in range(WIDEST)] for _ in range(HEIGHT + 1)]
    for engines, curve in rates.items():
        for i, rate in enumerate(curve):
            row = HEIGHT - round(rate / most * HEIGHT)
            if engines == chosen[i]:
                rows[row][i] = Text(str(engines), "bold green")
            elif not rows[row][i].style:
                rows[row][i] = Text(str(engines), "dim")
    width = len(f"{most:.0f}")
    for number, cells in enumerate(rows):
        label = f"{most * (HEIGHT - number) / HEIGHT:.0f}" if number % 4 == 0 else ""
        line = Text(f"{label:>{width}} {'┤' if label else '│'}")
        yield line + Text("").join(Text(" " * (STEP - 1)) + cell for cell in cells)
    axis = "".join(f"{n:>{STEP}}" for n in range(1, WIDEST + 1))
    yield Text(f"{'':{width}} └{'─' * len(axis)}")
    yield Text(f"{'':{width}}  {axis}")
