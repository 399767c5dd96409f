"""The benchmarks' own ideas: texts of a known length, a stand-in that is no worse a text model, honest sums."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import prompts, report, schemas, standin
from benchmarks.clients import Samovar, Turn
from benchmarks.everything import RUNS, verdicts
from benchmarks.figures import Figure
from benchmarks.loads import LOADS, Load, Subject, conversations, subject
from benchmarks.machine import ROOT
from benchmarks.results import Pair, Summary, rows
from benchmarks.runs import Run, run
from benchmarks.servers import samovar
from engine import Model


@pytest.fixture(scope="module")
def embedded() -> Subject:
    """The embedded model's vocabulary."""
    return subject("embedded")


def a_run(**changes: Any) -> Run:
    """A run of a hundred tokens in ten seconds, but for the changes."""
    fields = {"seconds": 10.0, "output": 100, "prompt": 50, "cached": 25, "first": [0.5], "gap": 0.1, "gap_p99": 0.2}
    return Run(**{**fields, "client": 0.01, "others": 0.0, "exact": True, **changes})


def a_pair(ours: Run, theirs: Run, *, revision: str = "abc") -> Pair:
    """A pair of runs at the same time."""
    facts = {"date": "2026-11-25", "machine": "2 x CPU", "engine": "0", "revision": revision}
    return Pair(model="m", load="chat", streams=2, ours=ours, theirs=theirs, **facts)


@pytest.mark.parametrize("tokens", [1, 2, 30, 300])
def test_texts_have_as_many_tokens_as_were_asked_for(embedded: Subject, tokens: int) -> None:
    text = embedded.text(tokens, random.Random(tokens))
    assert len(embedded.vocabulary.tokenize(text, special=False)) == tokens


def test_conversations_differ_between_sessions_turns_and_runs_but_for_the_system_prompt(embedded: Subject) -> None:
    talks = [talk for seed in (1, 2) for talk in conversations(LOADS["chat"], embedded, 4, seed)]
    texts = [text for talk in talks for text in talk.turns]
    assert len(set(texts)) == len(texts) == 24
    assert len({talk.system for talk in talks}) == 1
    assert conversations(LOADS["chat"], embedded, 4, 1) == talks[:4]


def test_a_row_is_the_median_over_its_pairs_with_their_spread() -> None:
    speeds = [(120, 100), (90, 100), (300, 200)]
    pairs = [a_pair(a_run(output=ours), a_run(output=theirs)) for ours, theirs in speeds]
    summary = Summary(pairs)
    assert (summary.ratio, summary.spread) == (1.2, (0.9, 1.5))
    assert (summary.medians("ours").speed, summary.medians("theirs").speed) == (12.0, 10.0)


def test_a_table_never_mixes_two_commits_in_one_row_and_takes_none_that_was_hardly_measured() -> None:
    old = [a_pair(a_run(), a_run(), revision="old") for _ in range(5)]
    new = [a_pair(a_run(), a_run(), revision="new") for _ in range(5)]
    assert [summary.pairs for summary in rows([*old, *new]).values()] == [new]
    assert [summary.pairs for summary in rows([*old, *new[:1]]).values()] == [old]


def test_a_run_disturbed_by_other_processes_is_recognized() -> None:
    assert a_run(others=0.5).disturbed
    assert not a_run(others=0.02).disturbed


@pytest.mark.slow
def test_text_from_the_stand_in_is_tokenized_to_what_it_emitted(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    standin.write(path, standin.Shape(layers=1, width=64, feed_forward=128, heads=4, kv_heads=2))
    vocabulary = Model(path, vocab_only=True).vocabulary
    assert vocabulary.size == standin.VOCABULARY
    words = [token for token, text in enumerate(standin.vocabulary()[0]) if text.startswith("Ġ") and token >= 256]
    emitted = random.Random(5).choices(words, k=5000)
    text = b"".join(map(vocabulary.piece, emitted)).decode()
    assert vocabulary.tokenize(text, special=False) == emitted
    start, end = vocabulary.tokenize("<|im_start|><|im_end|>", special=True)
    assert vocabulary.ends_generation(end)
    assert not vocabulary.ends_generation(start)
    assert len(vocabulary.tokenize("<|im_start|>assistant\n", special=True)) == 3


def test_the_page_states_for_each_row_whether_its_goal_was_reached(tmp_path: Path) -> None:
    fast, slow = a_pair(a_run(output=150), a_run()), a_pair(a_run(output=99), a_run())
    pairs = {("standin", "chat", 2): Summary([fast]), ("standin", "document", 2): Summary([slow])}
    figure = Figure(benchmark="memory", name="an engine", values=[690.0, 710.0, 720.0], unit="MB", goal=700.0)
    text = report.page(pairs, [figure])
    assert "| **1.50** (1.50 to 1.50, 1) | ≥ 1.40 ✓ |" in text
    assert "| **0.99** (0.99 to 0.99, 1) | ≥ 1.25 ✗ |" in text
    assert "### memory\n" in text
    assert "| an engine | 710 MB | 690 to 720, 3 times | ≤ 700 ✗ |" in text
    report.plot(pairs, tmp_path / "plot.svg")
    assert "llama-server" in text
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1


def test_a_negative_latency_neither_meets_nor_misses_its_goal() -> None:
    figure = Figure(benchmark="cancel", name="cancel", values=[-43.3], unit="ms", goal=20.0)
    assert figure.met is None
    assert "goal" not in str(figure)
    assert (
        "✓" not in report.page({("standin", "chat", 2): Summary([a_pair(a_run(), a_run())])}, [figure]).split("###")[1]
    )


def test_gaps_during_a_long_prompt_are_separated_from_others() -> None:
    turns = [Turn(0.0, deltas=[1.0, 2.0, 4.0, 5.0]), Turn(0.0, deltas=[3.0, 3.5])]
    assert list(prompts.gaps(turns, [(2.5, 3.2)], inside=True)) == [2.0, 0.5]
    assert list(prompts.gaps(turns, [(2.5, 3.2)], inside=False)) == [1.0, 1.0]


@pytest.mark.slow
async def test_a_run_counts_what_the_gateway_counts(embedded: Subject) -> None:
    load = Load("short", system=40, turn=(28, 32), answer=8)
    with samovar(embedded.path) as server:
        found = await run(Samovar(server), load, embedded, streams=2, seed=1)
    assert found.exact
    assert found.output == 2 * 3 * 8
    # All that was said before is cached from the second turn on.
    assert found.cached >= 2 * (2 * 40 + 3 * 8)
    assert len(found.first) == 3
    assert 0 < found.gap <= found.gap_p99


def test_no_benchmark_is_forgotten_when_all_are_run() -> None:
    others = {"bare", "everything", "report", "rival", "schemas", "soak", "standin"}  # no figures, own verdict or data
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if '"__main__"' in path.read_text()}
    assert {command.split()[0] for command in RUNS} == programs - others


def test_missed_goals_are_reported_last_and_those_of_older_commits_are_left_out() -> None:
    values: dict[str, Any] = {"benchmark": "b", "values": [2.0], "unit": "x", "revision": "abc"}
    low, none = Figure(name="low", goal=1.0, **values), Figure(name="none", **values)
    high = Figure(name="high", goal=1.0, high=True, **values)
    old = Figure(name="old", goal=1.0, **{**values, "revision": "abb"})
    lines = verdicts([low, none, old, high], "abc")
    assert [("high" in line, "NOT met" in line) for line in lines] == [(True, False), (False, True)]


@pytest.mark.slow
def test_schemas_are_examined_as_tool_and_as_format_with_their_instances(tmp_path: Path) -> None:
    data = tmp_path / "maskbench" / "data"
    data.mkdir(parents=True)
    tests = [{"valid": True, "data": {"a": 3}}, {"valid": True, "data": {"b": 0}}, {"valid": False, "data": {"a": 2}}]
    for name, schema in (
        ("One_easy---x.json", {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}}),
        ("Two---x.json", {"type": "object", "not": {"required": ["a"]}}),
    ):
        (data / name).write_text(json.dumps({"schema": schema, "tests": tests}))
    found = schemas.outcomes(schemas.sample(tmp_path, 5))
    one, two = found["One_easy"][0], found["Two"][0]
    assert (one.tool, one.ignored, one.strict, one.bare) == ("", (), "", "")
    assert (one.valid, one.invalid, [json.loads(test) for test in one.wrong]) == ([True, False], [False], [tests[1]])
    assert (two.tool, two.ignored) == ("", ("schema.not",))
    assert two.strict.startswith("schema.not: ")
    assert "not" in two.bare
    assert schemas.keywords([one.strict, two.strict]) == "`not` 1"
    assert len(list(schemas.table(found))) == 5


def test_the_benchmark_of_schemas_says_where_its_data_is_from(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="git clone"):
        schemas.sample(tmp_path, 1)
