"""Long prompts that arrive during other answers: the cost to those answers, and the wait of the prompts.

python -m benchmarks.prompts [--model standin] [--streams 1 2 4] [--rival]: gaps between the tokens of concurrent
streams, calm and while prompts of 1 000 tokens arrive one after the other, and the time to first token of those prompts
compared with a prompt alone. With --rival llama-server is measured as well.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import uvloop

from benchmarks.clients import ChatCompletions, Samovar, Side, Turn
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import TEMPLATE, Subject, subject
from benchmarks.runs import percentile
from benchmarks.servers import llama_server, samovar

PROMPT: Final = 1000
ARRIVALS: Final = 5
ANSWER: Final = 8
"""Tokens of the answer to a long prompt."""
STREAM: Final = (48, 1200)
"""Tokens of a stream's prompts and answers, which run one after the other. Answers are long, so that nearly all gaps
between tokens are caused by the long prompts."""
CALM_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 1.5
RIVAL_CONTEXT: Final = 2048


@dataclass
class Asking:
    """A client that requests one answer after the other from one side."""

    side: Side
    subject: Subject
    number: int = 0

    async def ask(self, tokens: int, answer: int) -> Turn:
        """Request an answer to a new prompt."""
        self.number += 1
        text = self.subject.text(tokens - TEMPLATE, random.Random(self.number))
        async with self.side.open("", self.subject.bias) as session:
            return await session.ask(text, answer)

    async def stream(self, done: asyncio.Event) -> list[Turn]:
        """Request one answer after the other until `done`."""
        turns = []
        while not done.is_set():
            turns.append(await self.ask(*STREAM))
        return turns


async def crowd(asking: Asking, streams: int) -> tuple[list[Turn], list[Turn]]:
    """Return (turns of the streams, turns of the long prompts that arrived meanwhile)."""
    done = asyncio.Event()
    others = [asyncio.create_task(asking.stream(done)) for _ in range(streams)]
    await asyncio.sleep(CALM_SECONDS)
    arrivals = []
    for _ in range(ARRIVALS):
        arrivals.append(await asking.ask(PROMPT, ANSWER))
        await asyncio.sleep(PAUSE_SECONDS)
    done.set()
    return [turn for turns in await asyncio.gather(*others) for turn in turns], arrivals


def gaps(turns: Sequence[Turn], windows: Sequence[tuple[float, float]], *, inside: bool) -> Iterator[float]:
    """Yield the seconds between tokens, of the gaps that overlap one of the windows or, if not `inside`, none."""
    for turn in turns:
        for earlier, later in itertools.pairwise(turn.deltas):
            if inside == any(earlier < end and later > begin for begin, end in windows):
                yield later - earlier


async def measure(name: str, asking: Asking, streams: Sequence[int]) -> list[Figure]:
    """Return all figures of one side. Raises TurnFailedError."""

    def figure(what: str, values: list[float], unit: str = "ms", goal: float | None = None) -> Figure:
        return Figure(
            benchmark="prompts", name=f"{asking.subject.name}, {name}: {what}", values=values, unit=unit, goal=goal
        )

    await asyncio.gather(*(asking.ask(*STREAM) for _ in range(max(streams))))  # load every engine
    alone = [(await asking.ask(PROMPT, ANSWER)).first for _ in range(ARRIVALS)]
    figures = [figure("first token of 1 000, alone", alone, "s")]
    for count in streams:
        turns, arrivals = await crowd(asking, count)
        prefills = [(turn.asked, turn.deltas[0]) for turn in arrivals]
        calm = statistics.median(gaps(turns, [(turn.asked, turn.ended) for turn in arrivals], inside=False))
        during = list(gaps(turns, prefills, inside=True))
        late = percentile(during, 0.99)
        firsts = [turn.first for turn in arrivals]
        goals = (4.0, 2.0) if name == "Samovar" else (None, None)
        figures += [
            figure(f"gap of {count} streams, calm", [calm * 1000]),
            figure(f"p99 gap of {count} streams while 1 000 arrive", [late * 1000]),
            figure(f"p99 gap over calm gap, {count} streams", [late / calm], "x", goals[0]),
            figure(f"longest gap of {count} streams while 1 000 arrive", [max(during) * 1000]),
            figure(f"first token of 1 000 with {count} streams", firsts, "s"),
            figure(
                f"first token over alone, {count} streams",
                [first / statistics.median(alone) for first in firsts],
                "x",
                goals[1],
            ),
        ]
    return figures


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rival", action="store_true", help="also measure llama-server")
    options = start_benchmark(parser)
    model = subject(options.model)
    with samovar(model.path, preload=False) as ours:  # no request ends the self-test here
        asking = Asking(Samovar(ours), model)
        publish(uvloop.run(measure("Samovar", asking, options.streams)))
    if options.rival:
        with llama_server(model.path, streams=max(options.streams) + 1, context=RIVAL_CONTEXT) as theirs:
            asking = Asking(ChatCompletions(theirs, cache_prompt=True), model)
            publish(uvloop.run(measure("llama-server", asking, options.streams)))


if __name__ == "__main__":
    main()
