"""What breaks costs nobody an answer: `benchmarks/faults` in short, and that its judges see what they are there to see.

The other faults have tests of their own: test_pool, test_guarded, test_sqlite_store, test_inspection, test_losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.house import Rest
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.questions import Question, flaws, scripts
from benchmarks.faults.trial import CONTEXT, trial
from tests.tiny_model import write_tiny_model

SECONDS = 2.0
KNOWN = Question("known", {"max_output_tokens": 5}, "1 2 3")
OWN = Question("own", {"max_output_tokens": 5}, None)


@pytest.fixture(scope="module")
def roomy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for three turns."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", context=CONTEXT)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger({"own": "abcde"})


def response(text: str, *, status: str = "completed", tokens: int = 5) -> dict[str, Any]:
    """A response as its last event tells it."""
    output = [{"type": "message", "content": [{"text": text}]}]
    return {"id": "resp_1", "status": status, "output": output, "usage": {"output_tokens": tokens}}


def test_the_same_seed_asks_the_same() -> None:
    assert scripts(7, 3) == scripts(7, 3) != scripts(8, 3)


@pytest.mark.parametrize(
    ("text", "expected", "lost", "doubled", "wrong"),
    [
        ("1 2 3", "1 2 3", 0, 0, False),
        ("1  3", "1 2 3", 1, 0, False),
        ("1 22 3", "1 2 3", 0, 1, False),
        ("AAAA", "AAAAA", 1, 0, False),
        ("AAAAAAA", "AAAAA", 0, 2, False),
        ("1 3 2", "1 2 3", 0, 0, True),
    ],
)
def test_tokens_that_are_lost_doubled_or_out_of_place_are_counted(
    text: str, expected: str, lost: int, doubled: int, wrong: bool
) -> None:
    found = flaws(text, expected)
    assert (found.lost, found.doubled, found.wrong) == (lost, doubled, wrong)


def test_deltas_that_do_not_come_to_the_answer_are_wrong(ledger: Ledger) -> None:
    ledger.ended(KNOWN, "1 2", response("1 2 3"), comparable=True, whole=False)
    assert not any(ledger.row.zeros)
    ledger.ended(KNOWN, "1 2", response("1 2 3"), comparable=True, whole=True)
    assert ledger.row.wrong == 1


def test_an_answer_of_the_models_own_is_compared_with_the_undisturbed_one_and_its_tokens_are_counted(
    ledger: Ledger,
) -> None:
    assert ledger.ended(OWN, "abcde", response("abcde"), comparable=True, whole=True)
    assert not ledger.ended(OWN, "abcdx", response("abcdx"), comparable=True, whole=True)
    ledger.ended(OWN, "abcd", response("abcd", status="incomplete", tokens=4), comparable=False, whole=True)
    assert (ledger.row.compared, ledger.row.changed, ledger.row.lost) == (2, 1, 1)


def test_what_is_kept_of_a_cut_answer_must_be_its_beginning(ledger: Ledger) -> None:
    ledger.cut_off(KNOWN, "1 2", response("1"))
    ledger.cut_off(OWN, "ab", response("abc"))
    assert ledger.row.wrong == 0
    ledger.cut_off(KNOWN, "1 2", response("2"))
    assert ledger.row.wrong == 1


def test_only_honest_codes_may_refuse(ledger: Ledger) -> None:
    ledger.refused("engine_unavailable", "")
    assert (ledger.row.refused, ledger.row.wrong) == (1, 0)
    ledger.refused("invalid_request", "")
    assert (ledger.row.refused, ledger.row.wrong) == (2, 1)


def test_what_does_not_come_back_is_a_leak() -> None:
    before = Rest(resident=100 << 20, files=30, engines=2, orphans=0, entries=0)
    assert before.leaks(before) == []
    after = Rest(resident=200 << 20, files=60, engines=3, orphans=1, entries=2)
    assert len(after.leaks(before)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kills", "disk", "conversations", "descriptors", "memory", "clients"])
async def test_under_a_fault_no_token_is_lost_or_doubled_no_turn_is_lost_and_nothing_leaks(
    fault: str, tmp_path: Path, roomy_model: Path
) -> None:
    row = await trial(fault, roomy_model, tmp_path / fault, seconds=SECONDS, seed=1, texts={})
    assert row.inflicted
    assert row.turns
    assert not any(row.zeros), f"{row.zeros} {dict(row.notes)}"
