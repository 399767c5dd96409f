"""Results in the cache folder, so that a long table can be measured in parts."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.machine import cache_folder, engine_version, processors, revision
from benchmarks.runs import Run


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the same conversations with each side, one after the other."""

    model: str
    load: str
    streams: int
    ours: Run
    theirs: Run
    date: str
    machine: str
    engine: str
    """Version of llama-cpp-python, whose llama.cpp both run."""
    revision: str
    """Our commit, and whether it used a plan measured by `samovar tune`."""

    @property
    def ratio(self) -> float:
        """Our output tokens per second divided by theirs."""
        return self.ours.speed / self.theirs.speed


def pair(model: str, load: str, streams: int, ours: Run, theirs: Run, *, tuned: bool) -> Pair:
    """Create a pair that was measured now, on this machine."""
    return Pair(
        model=model,
        load=load,
        streams=streams,
        ours=ours,
        theirs=theirs,
        date=datetime.date.today().isoformat(),
        machine=processors(),
        engine=engine_version(),
        revision=revision() + (", tuned" if tuned else ""),
    )


@dataclass(frozen=True)
class Summary:
    """The pairs of one row."""

    pairs: Sequence[Pair]

    @property
    def ratio(self) -> float:
        """Median ratio over pairs, because both runs of a pair saw the same state of the machine."""
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio."""
        return min(pair.ratio for pair in self.pairs), max(pair.ratio for pair in self.pairs)

    def medians(self, side: str) -> Medians:
        """Return the medians of `ours` or `theirs`."""
        runs: list[Run] = [getattr(pair, side) for pair in self.pairs]
        return Medians(
            speed=statistics.median(run.speed for run in runs),
            first=[statistics.median(values) for values in zip(*(run.first for run in runs), strict=True)],
            gap=statistics.median(run.gap for run in runs),
            gap_p99=statistics.median(run.gap_p99 for run in runs),
            cached=sum(run.cached for run in runs) / sum(run.prompt for run in runs),
            client=statistics.median(run.client for run in runs),
        )


@dataclass(frozen=True)
class Medians:
    """Median figures of one side over all pairs of a row."""

    speed: float
    first: list[float]
    gap: float
    gap_p99: float
    cached: float
    """Share of prompt tokens that were not computed, over all pairs."""
    client: float


def _file() -> Path:
    return cache_folder() / "pairs.jsonl"


def store(pair: Pair) -> None:
    """Append a pair to the stored ones."""
    with _file().open("ab") as file:
        file.write(msgspec.json.encode(pair) + b"\n")


def stored() -> list[Pair]:
    """Return all stored pairs, oldest first."""
    lines = _file().read_bytes().splitlines() if _file().exists() else []
    return [msgspec.json.decode(line, type=Pair) for line in lines]


def rows(pairs: Iterable[Pair]) -> dict[tuple[str, str, int], Summary]:
    """Return by (model, load, streams) the pairs of the commit with most pairs, the newest of several."""
    found: dict[tuple[str, str, int], dict[str, list[Pair]]] = {}
    for pair in pairs:
        commits = found.setdefault((pair.model, pair.load, pair.streams), {})
        commits.setdefault(pair.revision, []).append(pair)
    return {key: Summary(max(reversed(commits.values()), key=len)) for key, commits in found.items()}
