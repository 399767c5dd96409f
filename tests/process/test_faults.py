"""What breaks costs nobody an answer: `benchmarks/faults` in short, and that its judges see what they are there to see.

Engines and gateways are killed in turn, which is three of the faults in one. Hangs are left out: one that is found out
costs half a minute, and shorter ones are pauses. test_pool has one with a shorter deadline
(`test_a_hung_engine_is_killed_and_replaced`).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.faults import injection
from benchmarks.faults.__main__ import line
from benchmarks.faults.gateway import GatewayUnderTest, Rest
from benchmarks.faults.ledger import Ledger, Row
from benchmarks.faults.questions import Question, flaws, scripts
from benchmarks.faults.scene import Scene
from benchmarks.faults.talker import KEPT_SECONDS, _Answer
from benchmarks.faults.trial import CONTEXT, trial
from gateway.cli.launcher import LaunchError
from tests.support.clock import Clock
from tests.support.tiny_model import write_tiny_model

SECONDS = 2.0
CALM_SECONDS = 0.4
SEED = 21
"""One whose first pause is short enough in each fault for something to break within these seconds."""
PEOPLE = 3
"""More than the engines, and half of the benchmark's: on busy cores they wait half as long for each other."""
KNOWN = Question("known", {"max_output_tokens": 5}, "1 2 3")
OWN = Question("own", {"max_output_tokens": 5}, None)


@pytest.fixture(scope="module")
def roomy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for three turns."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", context=CONTEXT)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger({"own": "abcde"})


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """A process that can be stopped."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def response(text: str, *, status: str = "completed", tokens: int = 5) -> dict[str, Any]:
    """A response as its last event tells it."""
    output = [{"type": "message", "content": [{"text": text}]}]
    return {"id": "resp_1", "status": status, "output": output, "usage": {"output_tokens": tokens}}


def test_the_same_seed_asks_the_same() -> None:
    assert scripts(7, 3) == scripts(7, 3) != scripts(8, 3)


def scene(folder: Path, *, seed: str = "7 cache") -> Scene:
    """A gateway that nobody started."""
    return Scene(GatewayUnderTest(folder, folder / "tiny.gguf", log=folder / "log"), Ledger({}), seed, folder)


def test_what_is_drawn_next_does_not_depend_on_what_was_found_or_on_what_others_draw(tmp_path: Path) -> None:
    small, large = scene(tmp_path), scene(tmp_path)
    (tmp_path / "small").write_bytes(bytes(10))
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    for damaged, name in ((small, "small"), (large, "large"), (small, "none"), (large, "large")):
        injection._damage(damaged, tmp_path / name)
    large.mischief.random()
    large.people(1, scripts(7, 3))[0]._draw.random()
    assert injection._an_engine(large) is None
    small.chance.random()  # for the engine that it did not have
    assert small.chance.random() == large.chance.random() != scene(tmp_path, seed="8 cache").chance.random()
    assert small.mischief.random() != large.mischief.random()


def test_detected_hangs_are_counted_apart_from_pauses() -> None:
    assert line("stopped", Row(injected=24, for_good=3)).startswith("| stopped | 24, 3 of them for good | 0 |")
    assert line("killed", Row(injected=24)).startswith("| killed | 24 | 0 |")


@pytest.mark.parametrize(("waited", "stuck"), [(None, 0), (1.0, 0), (injection.PATIENCE + 1, 1)])
async def test_an_undetected_hang_counts_only_while_a_client_waits(
    waited: float | None, stuck: int, tmp_path: Path, sleeper: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without work owes nothing, and nobody can know that it would not answer."""
    hurt = scene(tmp_path)
    [talker] = hurt.people(1, scripts(7, 3))
    talker.asked = None if waited is None else time.monotonic() - waited
    monkeypatch.setattr(injection, "HANG_SECONDS", 0.01)
    times = iter([True, False])

    async def pause(*_: float) -> bool:
        return next(times)

    monkeypatch.setattr(hurt, "pause", pause)
    monkeypatch.setattr(injection, "_an_engine", lambda _: sleeper)
    await injection.stop_engines(hurt, time.monotonic() + 60)
    assert (hurt.ledger.row.injected, hurt.ledger.row.for_good, hurt.ledger.row.stuck) == (1, 0, stuck)
    assert hurt.ledger.row.notes.total() == 1


async def test_engines_say_nothing_for_a_while_before_half_of_the_gateways_kills(
    tmp_path: Path, sleeper: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurt, seen = scene(tmp_path), list[str]()
    times = iter([True] * 20 + [False])

    async def pause(*_: float) -> bool:
        return next(times)

    monkeypatch.setattr(injection, "KEPT_SECONDS", -0.49)  # and half a second more
    monkeypatch.setattr(hurt, "pause", pause)
    monkeypatch.setattr(hurt.gateway, "engines", lambda: [sleeper])
    monkeypatch.setattr(hurt.gateway, "kill", lambda: seen.append(sleeper.status()))
    monkeypatch.setattr(hurt.gateway, "start", lambda: None)
    await injection.kill_gateways(hurt, time.monotonic() + 60)
    assert hurt.ledger.row.injected == len(seen) == 20
    assert 0 < seen.count(psutil.STATUS_STOPPED) < 20
    assert sleeper.status() != psutil.STATUS_STOPPED


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
    ledger.cut_off(KNOWN, "1 2", response("1"), due="")
    ledger.cut_off(OWN, "ab", response("abc"), due="a")
    assert not any(ledger.row.zeros)
    ledger.cut_off(KNOWN, "1 2", response("2"), due="")
    assert ledger.row.wrong == 1


def test_an_interrupted_answer_without_text_received_long_before_is_a_lost_turn(ledger: Ledger) -> None:
    ledger.not_kept(due="")  # it had just started
    ledger.cut_off(KNOWN, "1 2", response("1 "), due="1 ")
    assert (ledger.row.cut, ledger.row.unkept, ledger.row.due, ledger.row.turns_lost) == (1, 1, 1, 0)
    ledger.not_kept(due="1")
    assert (ledger.row.unkept, ledger.row.turns_lost) == (2, 1)
    ledger.cut_off(KNOWN, "1 2", response("1"), due="1 ")
    ledger.cut_off(OWN, "ab", response(""), due="a")
    assert (ledger.row.cut, ledger.row.due, ledger.row.turns_lost) == (3, 4, 3)
    assert line("killed", ledger.row).endswith("| 3, 2 not; 4 due |")


def test_of_a_damaged_file_nothing_is_due() -> None:
    ledger = Ledger({}, keeps=False)
    ledger.not_kept(due="1")
    ledger.cut_off(KNOWN, "1 2", response(""), due="1")
    assert (ledger.row.cut, ledger.row.unkept, ledger.row.due, ledger.row.turns_lost) == (1, 1, 0, 0)
    assert [name for name, fault in injection.FAULTS.items() if not fault.keeps] == ["conversations", "databases"]


def test_due_is_the_text_received_some_seconds_before_the_gateway_exited(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, clock = _Answer(KNOWN), Clock(100.0)
    monkeypatch.setattr("benchmarks.faults.talker.time.monotonic", clock)

    def add(number: int, text: str) -> None:
        answer.receive({"type": "response.output_text.delta", "sequence_number": number, "delta": text})

    add(1, "1")
    clock.now += 1
    add(2, " 2")
    clock.now += KEPT_SECONDS - 0.5
    answer.lose(clock.now)
    assert (answer.text, answer.due) == ("1 2", "1")
    clock.now += 60  # the next gateway ended too, before it said anything
    answer.lose(clock.now)
    assert answer.due == "1"


def test_only_honest_codes_may_refuse_and_what_they_say_is_noted(ledger: Ledger) -> None:
    ledger.row.injected = 1
    ledger.refused("engine_unavailable", "it died")
    assert (ledger.row.refused, ledger.row.wrong) == (1, 0)
    assert dict(ledger.row.notes) == {"refused with engine_unavailable: it died": 1}
    ledger.refused("invalid_request", "")
    assert (ledger.row.refused, ledger.row.wrong) == (2, 1)


def test_without_a_fault_no_request_may_be_rejected(ledger: Ledger) -> None:
    ledger.refused("engine_unavailable", "llama_decode returned 1")
    assert (ledger.row.refused, ledger.row.wrong) == (1, 1)
    assert ledger.row.notes["engine_unavailable while nothing was broken"] == 1


def test_what_does_not_come_back_is_a_leak() -> None:
    before = Rest(resident=100 << 20, files=30, engines=2, orphans=0, entries=0)
    assert before.leaks(before) == []
    after = Rest(resident=200 << 20, files=60, engines=3, orphans=1, entries=2)
    assert len(after.leaks(before)) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        "kills",
        "prompts",
        "redis",
        "disk",
        "cache",
        "conversations",
        "databases",
        "clock",
        "descriptors",
        "memory",
        "model",
        "clients",
    ],
)
async def test_under_a_fault_no_token_is_lost_or_doubled_no_turn_is_lost_and_nothing_leaks(
    fault: str, tmp_path: Path, roomy_model: Path
) -> None:
    row = await trial(
        fault, roomy_model, tmp_path / fault, seconds=SECONDS, seed=SEED, texts={}, count=PEOPLE, calm=CALM_SECONDS
    )
    assert row.injected
    assert row.turns
    assert not any(row.zeros), f"{row.zeros} {dict(row.notes)}"


def test_a_house_that_is_closed_does_not_start_again(tmp_path: Path) -> None:
    gateway = GatewayUnderTest(tmp_path, tmp_path / "tiny.gguf", log=tmp_path / "log")
    gateway.close()
    with pytest.raises(LaunchError, match="closed"):
        gateway.start()
