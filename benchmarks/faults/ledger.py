"""What was promised, what came of it, and what that makes in figures. The goal of the first six is 0."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from benchmarks.faults.questions import Question, flaws

CHECKED_AT_ONCE: Final = 8
HONEST: Final = frozenset({"engine_unavailable", "store_unavailable", "queue_full", "queue_timeout"})
"""Codes by which a request may be refused while something is broken."""


@dataclass
class Row:
    """The figures of one fault."""

    lost: int = 0
    """Tokens of ended answers that never came."""
    doubled: int = 0
    turns_lost: int = 0
    """Answers that were acknowledged, and are not there any more or say something else."""
    wrong: int = 0
    """Texts that are not what they must be, events out of order, errors without an honest code or without a fault."""
    stuck: int = 0
    """Requests that never ended."""
    leaks: int = 0
    """Kinds of resources that did not come back."""
    inflicted: int = 0
    for_good: int = 0
    """Of these, hangs that lasted until the engine was found out and killed; the others were pauses."""
    turns: int = 0
    """Acknowledged."""
    compared: int = 0
    """Texts of the model's own that were compared with their undisturbed ones."""
    changed: int = 0
    """Of these, those that differ."""
    refused: int = 0
    """Requests that were refused or failed, with whatever code."""
    resumed: int = 0
    """Answers whose connection was lost and that were heard to their end on another."""
    cut: int = 0
    """Answers that a gateway's end cut off: marked as such, and continued."""
    unkept: int = 0
    """Answers that a gateway's end cut off and that were not there afterwards."""
    due: int = 0
    """Of both, those of which something was heard so long before that it must have been kept."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was wrong, and why requests were refused, in words."""

    @property
    def zeros(self) -> tuple[int, ...]:
        """All that must be 0."""
        return self.lost, self.doubled, self.turns_lost, self.wrong, self.stuck, self.leaks

    def blame(self, what: str) -> None:
        """Count something that is wrong."""
        self.wrong += 1
        self.notes[what] += 1


class Ledger:
    """Judges answers, and remembers those that were acknowledged."""

    def __init__(self, texts: dict[str, str], *, keeps: bool = True) -> None:
        """Begin with nothing promised; `texts` are undisturbed answers by the key of their question, or are to be.

        Without `keeps`, what was noted of running answers may be gone: the fault takes the file that it stands in.
        """
        self.row = Row()
        self._keeps = keeps
        self.firsts: list[float] = []
        """Seconds to the first text of each answer that ended."""
        self._promised: dict[str, tuple[str, str]] = {}
        """Status and text by response id."""
        self._undisturbed = texts

    def ended(
        self, question: Question, streamed: str, response: Mapping[str, Any], *, comparable: bool, whole: bool
    ) -> bool:
        """An answer was acknowledged; False when it is not what it would have been undisturbed.

        `streamed` is what its deltas came to, all of it when it was heard `whole`; `comparable` says whether its
        conversation was undisturbed before it.
        """
        text = said(response)
        self.row.turns += 1
        self._promised[response["id"]] = response["status"], text
        if streamed != text if whole else not text.startswith(streamed):
            self.row.blame(f"the deltas came to {len(streamed)} letters and the answer to {len(text)}")
        if question.expected is None:
            self._check_length(question, response)
            return comparable and self._compare(question.key, text)
        found = flaws(text, question.expected)
        self.row.lost += found.lost
        self.row.doubled += found.doubled
        if found.wrong:
            self.row.blame(f"{text[:40]!r} came instead of {question.expected[:40]!r}")
        return comparable

    def cut_off(self, question: Question, streamed: str, response: Mapping[str, Any], *, due: str) -> None:
        """An answer that its gateway's end cut off: what was kept must begin what was meant to be said.

        `due` is what was heard of it so long before that end that it must have been kept.
        """
        text = said(response)
        self.row.cut += 1
        self._check_due(due, text)
        self._promised[response["id"]] = response["status"], text
        whole = question.expected or max(text, streamed, key=len)
        if not (whole.startswith(text) and whole.startswith(streamed)):
            self.row.blame("what was kept of a cut answer is not its beginning")

    def not_kept(self, *, due: str) -> None:
        """An answer that its gateway's end cut off is not there: as it must be, if anything of it was `due`."""
        self.row.unkept += 1
        self._check_due(due, "")

    def refused(self, code: str, message: str) -> None:
        """A request was refused, or failed; wrong without an honest code, or while nothing was ever broken."""
        self.row.refused += 1
        self.row.notes[f"refused with {code}: {message[:100]}"] += 1
        if code not in HONEST:
            self.row.blame(f"{code} is no code for what is broken")
        elif not self.row.inflicted:
            self.row.blame(f"{code} while nothing was broken")

    def stuck(self, what: str) -> None:
        """A request never ended."""
        self.row.stuck += 1
        self.row.notes[what] += 1

    async def audit(self, url: str) -> None:
        """Ask for everything that was ever acknowledged."""
        gate = asyncio.Semaphore(CHECKED_AT_ONCE)

        async def look(client: httpx.AsyncClient, response: str, status: str, text: str) -> None:
            async with gate:
                answer = await client.get(f"/v1/responses/{response}")
            if answer.status_code != 200 or said(answer.json()) != text:
                self.row.turns_lost += 1
                self.row.notes[f"HTTP {answer.status_code} for an answer that was acknowledged as {status}"] += 1
                del self._promised[response]

        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(look(client, id_, *promise) for id_, promise in tuple(self._promised.items())))

    def _check_due(self, due: str, kept: str) -> None:
        if not due or not self._keeps:
            return
        self.row.due += 1
        if len(kept) < len(due):
            self.row.turns_lost += 1
            self.row.notes[f"of a cut answer {len(kept)} letters were kept where {len(due)} were due"] += 1

    def _check_length(self, question: Question, response: Mapping[str, Any]) -> None:
        missing = question.fields["max_output_tokens"] - response["usage"]["output_tokens"]
        if response["status"] == "incomplete" and missing:
            self.row.lost += max(0, missing)
            self.row.doubled += max(0, -missing)

    def _compare(self, key: str, text: str) -> bool:
        known = self._undisturbed.setdefault(key, text)
        self.row.compared += 1
        self.row.changed += known != text
        return known == text


def said(response: Mapping[str, Any]) -> str:
    """The text of a response."""
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))
