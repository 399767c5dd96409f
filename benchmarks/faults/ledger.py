"""Compares acknowledged answers with what is found later, and counts the losses. The first six counts must be 0."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from benchmarks.faults.questions import Question, flaws

CHECKED_AT_ONCE: Final = 8
EXPECTED: Final = frozenset({"engine_unavailable", "store_unavailable", "queue_full", "queue_timeout"})
"""Error codes that may refuse a request during a fault."""


@dataclass
class Row:
    """The figures of one fault."""

    lost: int = 0
    """Missing tokens of completed answers."""
    doubled: int = 0
    turns_lost: int = 0
    """Acknowledged answers that are missing afterwards or have another text."""
    wrong: int = 0
    """Unexpected texts, events out of order, errors with an incorrect code or without a fault."""
    stuck: int = 0
    """Requests that never ended."""
    leaks: int = 0
    """Kinds of resources that did not return to their earlier level."""
    injected: int = 0
    for_good: int = 0
    """Of these, hangs that lasted until the engine was detected and killed; the others were pauses."""
    turns: int = 0
    """Acknowledged turns."""
    compared: int = 0
    """Texts of the model's own that were compared with undisturbed runs."""
    changed: int = 0
    """Of these, those that differ."""
    refused: int = 0
    """Requests that were refused or failed, with any code."""
    resumed: int = 0
    """Answers whose connection was lost and that were received to their end on another connection."""
    cut: int = 0
    """Answers that the end of a gateway cut off: marked `incomplete`, and continued."""
    unkept: int = 0
    """Answers that the end of a gateway cut off and that were not stored."""
    due: int = 0
    """Of both, those with text received so long before that it must have been stored."""
    notes: Counter[str] = field(default_factory=Counter)
    """Descriptions of errors, and reasons for refusals."""

    @property
    def zeros(self) -> tuple[int, ...]:
        """All counts that must be 0."""
        return self.lost, self.doubled, self.turns_lost, self.wrong, self.stuck, self.leaks

    def blame(self, reason: str) -> None:
        """Count and describe an error."""
        self.wrong += 1
        self.notes[reason] += 1


class Ledger:
    """Judges answers, and records acknowledged ones."""

    def __init__(self, texts: dict[str, str], *, keeps: bool = True) -> None:
        """Create an empty ledger. `texts` holds undisturbed answers by the key of their question; new ones are added.

        Without `keeps`, stored parts of running answers may be lost, because the fault removes their file.
        """
        self.row = Row()
        self._keeps = keeps
        self.firsts: list[float] = []
        """Seconds to the first text of each answer that ended."""
        self._acknowledged: dict[str, tuple[str, str]] = {}
        """Status and text by response id."""
        self._undisturbed = texts

    def ended(
        self, question: Question, streamed: str, response: Mapping[str, Any], *, comparable: bool, whole: bool
    ) -> bool:
        """Record an acknowledged answer; return False if it differs from the undisturbed one.

        `streamed` is the text of its deltas, complete if `whole`; `comparable` states whether its conversation was
        undisturbed so far.
        """
        text = output_text(response)
        self.row.turns += 1
        self._acknowledged[response["id"]] = response["status"], text
        if streamed != text if whole else not text.startswith(streamed):
            self.row.blame(f"the deltas have {len(streamed)} letters and the answer {len(text)}")
        if question.expected is None:
            self._check_length(question, response)
            return comparable and self._compare(question.key, text)
        found = flaws(text, question.expected)
        self.row.lost += found.lost
        self.row.doubled += found.doubled
        if found.wrong:
            self.row.blame(f"{text[:40]!r} instead of {question.expected[:40]!r}")
        return comparable

    def cut_off(self, question: Question, streamed: str, response: Mapping[str, Any], *, due: str) -> None:
        """Record an answer that the end of its gateway cut off; the stored text must be a prefix of the whole answer.

        `due` is the text that was received so long before that end that it must have been stored.
        """
        text = output_text(response)
        self.row.cut += 1
        self._check_due(due, text)
        self._acknowledged[response["id"]] = response["status"], text
        whole = question.expected or max(text, streamed, key=len)
        if not (whole.startswith(text) and whole.startswith(streamed)):
            self.row.blame("the stored text of a cut answer is not its prefix")

    def not_kept(self, *, due: str) -> None:
        """Record a missing answer that the end of its gateway cut off, which is a loss if text was `due`."""
        self.row.unkept += 1
        self._check_due(due, "")

    def refused(self, code: str, message: str) -> None:
        """Record a refused or failed request; it is an error with an unexpected code, or without any fault."""
        self.row.refused += 1
        self.row.notes[f"refused with {code}: {message[:100]}"] += 1
        if code not in EXPECTED:
            self.row.blame(f"{code} does not describe the fault")
        elif not self.row.injected:
            self.row.blame(f"{code} while nothing was broken")

    def stuck(self, reason: str) -> None:
        """Record a request that never ended."""
        self.row.stuck += 1
        self.row.notes[reason] += 1

    async def audit(self, url: str) -> None:
        """Request everything that was ever acknowledged, and count what is missing."""
        gate = asyncio.Semaphore(CHECKED_AT_ONCE)

        async def look(client: httpx.AsyncClient, response: str, status: str, text: str) -> None:
            async with gate:
                answer = await client.get(f"/v1/responses/{response}")
            if answer.status_code != 200 or output_text(answer.json()) != text:
                self.row.turns_lost += 1
                self.row.notes[f"HTTP {answer.status_code} for an answer that was acknowledged as {status}"] += 1
                del self._acknowledged[response]

        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(look(client, id_, *answer) for id_, answer in tuple(self._acknowledged.items())))

    def _check_due(self, due: str, kept: str) -> None:
        if not due or not self._keeps:
            return
        self.row.due += 1
        if len(kept) < len(due):
            self.row.turns_lost += 1
            self.row.notes[f"{len(kept)} letters of a cut answer were stored, {len(due)} were due"] += 1

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


def output_text(response: Mapping[str, Any]) -> str:
    """Return the text of a response."""
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))
