"""docs/benchmarks.md and its plot, from what has been measured so far.

python -m benchmarks.report: needs pairs of benchmarks.compare in the cache folder, and adds other benchmarks' figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, number, published
from benchmarks.machine import REPORT, ROOT
from benchmarks.results import Medians, Summary, kept, rows

PAGE, PLOT = (ROOT / path for path in REPORT)
Rows = Mapping[tuple[str, str, int], Summary]
TITLES: Final = {
    ("standin", "chat"): "Chat, users' model (stand-in)",
    ("standin", "document"): "Documents, users' model (stand-in)",
    ("embedded", "chat"): "Chat, embedded model",
}
GOALS: Final = {
    ("standin", "chat"): {1: 1.00, 2: 1.40, 4: 1.15, 8: 1.00, 16: 1.00},
    ("standin", "document"): {1: 1.00, 2: 1.25, 4: 1.00, 8: 1.00, 16: 1.00},
    ("embedded", "chat"): {1: 1.00, 2: 1.10, 4: 1.00, 8: 1.00, 16: 1.00},
}
"""What Samovar's output tokens a second are to be over llama-server's, by concurrent conversations."""
INTRODUCTION: Final = """\
# Measured

![Output tokens a second of Samovar and of llama-server, by concurrent conversations](benchmarks.svg)

`make bench` measures Samovar beside llama-server, which it builds from the llama.cpp that llama-cpp-python carries: the
same commit, the same kernels, the same model file, the same cores. Both hold the same conversations one after the
other, in pairs (ours, theirs, theirs, ours, …); a row is the median over its pairs, without those during which other
processes used more than a tenth of a core. llama-server gets `-np` = conversations and `-t` = cores; Samovar runs as
`samovar serve` does, without any flag but the model. Texts are seeded and differ between conversations, turns and
pairs, so that nothing is cached but what was said before in the same conversation and the system prompt of 160 tokens,
which all share. Temperature is 0, and every answer is as long as it was asked to be, by the servers' own counts.

- *Chat*: three turns of about 30 new tokens, answered by 128.
- *Documents*: three turns of 150 to 300 new tokens, answered by 64.
- The *stand-in* has the shapes, tensor types and vocabulary size of Qwen2.5-0.5B-Instruct Q4_K_M, and random weights:
  speed does not depend on what weights say. The *embedded* model is SmolLM2-135M-Instruct Q4_1.
"""

BOUND: Final = """\
## What decides

*One conversation*: both do the same steps, and stand within a few per cent of each other. Python's share of a step
(*overhead* below) is about what is missing with the embedded model, whose steps are short.

*From eight on*: llama-server gives each conversation a cache of its own. Samovar's engine has one for all, so that
prefixes are shared and any mix of lengths fits; but the attention of every step walks all cells in it, once for each
row, whoever owns them. So many answers are decoded on *seats*, a second context of as many streams (`engine/seats.py`),
and prompts that come while the shared cache is crowded are computed beside it, too (`engine/annex.py`). Longer
conversations than a seat holds (768 tokens of sixteen, 1 536 of eight) are decoded in the shared cache, and pay for it.
Kernels take rows by four: a step is filled up with rows of nothing where that makes it faster. What each of these costs
and saves is under *crowd* below.

*Long prompts beside answers*: llama-server computes them first, in its widest steps, and everybody else waits for that.
Samovar has those who read along go on in another engine (`gateway/scheduling/dispatcher.py`), which leaves the prompt
one engine and its share of the cores. What that costs either of them is under *prompts* below.

*Documents*: llama-server computes the prompts of all before anybody reads a word, and then all answers in lockstep,
which makes the fullest steps there are. Samovar lets the first read while others' prompts are computed: compare the
first tokens. *beside* below has what that costs and saves, on the same engine: prompts first is the order with the
fullest steps, and what it is faster by is about what scheduling could still bring. Sixteen conversations of 1 000
tokens do not fit on seats: their last turns are decoded in the shared cache, where a step takes longer (*crowd* below),
as the cells that seats would be filled from have used up the memory that an engine may take.

*The embedded model from eight on*: its steps are short, so that what runs on the two cores beside them weighs more:
both threads of a step wait for the one whose core the gateway has (its share of a core is under *fairness* below).
Python's share is under *overhead*; what storing takes does not show in *writeback*, whose runs differ by more. The
distance to llama-server is less than the rows' own spread.
"""


def page(pairs: Rows, figures: Sequence[Figure]) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_facts(pairs, figures), *_tables(pairs), BOUND, *_figures(figures)]) + "\n"


def _facts(pairs: Rows, figures: Sequence[Figure]) -> Iterator[str]:
    """Where and when."""
    last = [(p.machine, p.engine) for summary in pairs.values() for p in summary.pairs]
    last += [(figure.machine, figure.engine) for figure in figures]
    dates = [p.date for summary in pairs.values() for p in summary.pairs] + [figure.date for figure in figures]
    machines = ", ".join(sorted({f"{machine} (llama-cpp-python {engine})" for machine, engine in last}))
    yield f"Machine: {machines}. Measured from {min(dates)} to {max(dates)}."
    yield ""


def _tables(pairs: Rows) -> Iterator[str]:
    for kind, title in TITLES.items():
        found = {streams: summary for (model, load, streams), summary in sorted(pairs.items()) if (model, load) == kind}
        if not found:
            continue
        yield f"## {title}\n"
        yield (
            "| conversations | ratio (least to most, pairs) | goal | tokens/s | llama-server "
            "| first token, turn 1 / 2 / 3 | llama-server | between pieces, median and p99 | llama-server | commit |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for streams, summary in found.items():
            yield _row(streams, summary, GOALS[kind].get(streams))
        yield ""


def _row(streams: int, summary: Summary, goal: float | None) -> str:
    ours, theirs = summary.medians("ours"), summary.medians("theirs")
    least, most = summary.spread
    met = "" if goal is None else f"≥ {goal:.2f} {'✓' if round(summary.ratio, 2) >= goal else '✗'}"
    ratio = f"**{summary.ratio:.2f}** ({least:.2f} to {most:.2f}, {len(summary.pairs)})"
    both = [cell for pair in zip(_cells(ours), _cells(theirs), strict=True) for cell in pair]
    return "| " + " | ".join([str(streams), ratio, met, *both, summary.pairs[0].revision]) + " |"


def _cells(medians: Medians) -> list[str]:
    first = " / ".join(f"{seconds:.2f}" for seconds in medians.first)
    return [f"{medians.speed:.1f}", f"{first} s", f"{medians.gap * 1000:.0f}, {medians.gap_p99 * 1000:.0f} ms"]


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    if not figures:
        return
    yield "## Other figures\n"
    yield "Each by `make bench BENCH=` and its name; `BENCH=everything` measures all of this page in three hours.\n"
    for benchmark in dict.fromkeys(figure.benchmark for figure in figures):
        yield f"### {benchmark}\n"
        yield "| what | median | least to most | goal | commit |"
        yield "|---|---|---|---|---|"
        yield from (_figure(figure) for figure in figures if figure.benchmark == benchmark)
        yield ""


def _figure(figure: Figure) -> str:
    met = "" if figure.met is None else f"{figure.bound} {'✓' if figure.met else '✗'}"
    cells = (figure.name, f"{number(figure.median)} {figure.unit}", figure.spread, met, figure.revision)
    return "| " + " | ".join(cells) + " |"


def plot(pairs: Rows, path: Path) -> None:
    """Output tokens a second by conversations: a panel for each model and load that was measured."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    kinds = [kind for kind in TITLES if any(key[:2] == kind for key in pairs)]
    drawing = Drawing(figsize=(4.2 * len(kinds), 3.6), layout="constrained")
    FigureCanvasSVG(drawing)
    for place, kind in enumerate(kinds, 1):
        axes = drawing.add_subplot(1, len(kinds), place)
        streams = sorted(key[2] for key in pairs if key[:2] == kind)
        for side, name, colour in (("ours", "Samovar", "#b5442c"), ("theirs", "llama-server", "#5b6b7a")):
            speeds = [pairs[*kind, n].medians(side).speed for n in streams]
            axes.plot(range(len(streams)), speeds, "o-", color=colour, label=name)
        axes.set_xticks(range(len(streams)), [str(n) for n in streams])
        axes.set_ylim(bottom=0)
        axes.set_title(TITLES[kind], fontsize=10)
        axes.set_xlabel("conversations at once")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 1:
            axes.set_ylabel("output tokens a second")
            axes.legend(frameon=False)
    drawing.savefig(path, metadata={"Date": None})


def write() -> None:
    """Write the page and the plot, and say where they are."""
    pairs = rows(kept())
    if not pairs:
        raise SystemExit("nothing has been measured yet: make bench")
    PAGE.write_text(page(pairs, list(published().values())))
    plot(pairs, PLOT)
    print(PAGE, PLOT, sep="\n")


def main() -> None:
    """Write them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()


if __name__ == "__main__":
    main()
