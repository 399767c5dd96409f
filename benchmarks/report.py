"""Write docs/benchmarks.md and its plot from the measurements so far.

python -m benchmarks.report: needs pairs of benchmarks.compare in the cache folder, and adds the figures of the other
benchmarks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, number, published
from benchmarks.machine import REPORT, ROOT
from benchmarks.results import Medians, Summary, rows, stored

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
"""Goal for Samovar's output tokens per second relative to llama-server, by concurrent conversations."""
INTRODUCTION: Final = """\
# Measured

![Output tokens a second of Samovar and of llama-server, by concurrent conversations](benchmarks.svg)

`make bench` compares Samovar with llama-server, which it builds from the llama.cpp that llama-cpp-python contains: the
same commit, the same kernels, the same model file, the same cores. Both serve the same conversations one after the
other, in pairs (ours, theirs, theirs, ours, …). A row is the median over its pairs, without pairs during which other
processes used more than a tenth of a core. llama-server gets `-np` = conversations and `-t` = cores; Samovar runs as
`samovar serve` without any flag but the model. Texts are seeded and differ between conversations, turns and pairs, so
that only the earlier turns of the same conversation and the system prompt of 160 tokens, which all share, are cached.
Temperature is 0, and every answer has the requested length, by the servers' own counts.

- *Chat*: three turns of about 30 new tokens, each with an answer of 128.
- *Documents*: three turns of 150 to 300 new tokens, each with an answer of 64.
- The *stand-in* has the shapes, tensor types and vocabulary size of Qwen2.5-0.5B-Instruct Q4_K_M, and random weights:
  speed does not depend on the values of weights. The *embedded* model is SmolLM2-135M-Instruct Q4_1.
"""

BOUND: Final = """\
## What limits the speed

*One conversation*: both servers compute the same steps, and differ by a few per cent. With the embedded model, whose
steps are short, Python's share of a step (*overhead* below) accounts for most of the difference.

*Eight conversations and more*: llama-server gives each conversation its own cache. Samovar's engine has one cache for
all, so that conversations share prefixes and any mix of lengths fits; but the attention of every step reads all of its
cells, once for each row, whichever conversation they belong to. When many answers run, they are therefore decoded on
*seats*, a second context with one stream per answer (`engine/kv/seats.py`), and prompts that arrive while the shared
cache is crowded are computed in a separate context, too (`engine/kv/annex.py`). Conversations that are longer than a
seat (768 tokens with sixteen, 1 536 with eight) are decoded in the shared cache, at a cost. Kernels process rows in
groups of four, so a step is padded with empty rows where that is faster. *crowd* below has the costs and savings.

*One context with a stream per request*, as in llama-server, was built and measured (2026-12-01, 2 x Xeon, the same
requests in one engine with two threads, one run each, tokens per second relative to the three contexts): with a real
Qwen2.5-class Q4_K_M documents x16 0.84, x4 0.78, chat x8 0.88, x4 0.94, x1 0.95; with the embedded model chat x8 0.89,
x16 0.88. llama.cpp computes prompts of unequal length in one step only in a unified cache; with streams it splits the
step, so that prompts take half as many steps again. It holds less memory after the load (664 MB instead of 984), and
copies nothing. So there are three contexts still. Without the annex, documents x16 lose 10 % (12 % with the embedded
model); without seats 4 % (2 %), and chat x16 with the embedded model 5 %; up to eight chats neither matters.

*Long prompts during answers*: llama-server computes prompts first, in its widest steps, and all answers wait.
Samovar moves running answers to another engine (`gateway/scheduling/dispatcher.py`), which leaves one engine and its
share of the cores to the prompt. *prompts* below has the cost for both.

*Documents*: llama-server computes all prompts before anybody gets a token, and then all answers in lockstep, which
fills its steps best. Samovar delivers the first answers while other prompts are computed: compare the first tokens.
*prompts_first* below has the costs and savings on the same engine: prompts first is the order with the fullest steps,
and its lead is about what better scheduling could still gain. Sixteen conversations of 1 000 tokens do not fit on
seats: their last turns are decoded in the shared cache, where a step takes longer (*crowd* below), because the cells
that seats would be filled from have used up the engine's memory limit.

*The embedded model from eight conversations on*: its steps are short, so other work on the two cores matters more: both
threads of a step wait for the one whose core the gateway uses (*fairness* below has its share of a core). *overhead*
has Python's share. The cost of storing does not show in *writeback*, whose runs differ by more. The distance to
llama-server is smaller than the spread of the rows.
"""


def page(pairs: Rows, figures: Sequence[Figure]) -> str:
    """Return the whole page as Markdown."""
    return "\n".join([INTRODUCTION, *_facts(pairs, figures), *_tables(pairs), BOUND, *_figures(figures)]) + "\n"


def _facts(pairs: Rows, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the line with machine, version and dates."""
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
    return [f"{medians.speed:.1f}", f"{first} s", f"{number(medians.gap * 1000)}, {number(medians.gap_p99 * 1000)} ms"]


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    if not figures:
        return
    yield "## Other figures\n"
    yield "`make bench BENCH=NAME` measures one table; `BENCH=everything` measures the whole page in three hours.\n"
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
    """Plot output tokens per second by conversations, one panel for each measured model and load."""
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
    """Write the page and the plot, and print their paths."""
    pairs = rows(stored())
    if not pairs:
        raise SystemExit("nothing has been measured yet: run `make bench` first")
    PAGE.write_text(page(pairs, list(published().values())))
    plot(pairs, PLOT)
    print(PAGE, PLOT, sep="\n")


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()


if __name__ == "__main__":
    main()
