"""Drafted and plain decoding give the same tokens, whatever samples them, and leave the same KV."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from llguidance import LLMatcher
from msgspec.structs import replace

from cache import CacheConfig, KeyRing
from engine import CostModel, Finished, Generate, Grammar, Model, Sampling, Stepped, StepTimes, Tokens, WorkerConfig
from engine.core import EngineCore
from engine.llama import Context
from engine.messages import FromEngine, Logprob

CASES = 120
LETTERS = range(65, 72)
GRAMMAR = Grammar(LLMatcher.grammar_from_lark("start: /[A-G]{2,9}(, [A-G]{2,9})*\\./"))
FLAT = {1: 0.0010, 2: 0.0011, 3: 0.0012, 16: 0.0020, 256: 0.02}
COSTS = CostModel(cores=1, times=[StepTimes(engines=1, threads=1, decode=FLAT, prefill=FLAT)], measured=True)
"""The tiny model's steps take about the same time at any width, so that drafts pay."""
ROWS = 3
COPYING = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias=dict.fromkeys(LETTERS, 1000.0))
END = 259  # <|im_end|>


class Recorder:
    """Collects what an engine sends."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[Logprob]] = {}
        self.ends: dict[int, str] = {}
        self.drafted = self.accepted = 0

    def wake(self) -> None:
        """Nobody sleeps."""

    def send(self, message: FromEngine, **_: bool) -> None:
        match message:
            case Tokens():
                raise AssertionError("tokens are collected one by one")
            case Finished():
                self.ends[message.request] = f"{message.reason} {message.detail}".strip()
            case Stepped():
                self.drafted += message.drafted
                self.accepted += message.accepted

    def send_token(self, request: int, token: int, logprobs: list[Logprob]) -> None:
        self.tokens.setdefault(request, []).append(token)
        self.logprobs.setdefault(request, []).extend(logprobs)

    def send_tokens(self, request: int) -> None:
        """Tokens are recorded at once."""


def engine(
    model: Path, loaded: Model, *, speculation: bool, cache: CacheConfig | None = None
) -> tuple[EngineCore, Recorder]:
    recorder = Recorder()
    config = WorkerConfig(str(model), 4096, 8, COSTS, cache, {"model": "tiny"}, speculation=speculation)
    core = EngineCore(recorder, loaded, config)  # type: ignore[arg-type]
    core.set_threads(1)
    return core, recorder


def run(core: EngineCore, recorder: Recorder, requests: list[Generate]) -> None:
    """Run requests to their ends."""
    for request in requests:
        core.add(request)
    deadline = time.monotonic() + 60
    while not {request.request for request in requests} <= recorder.ends.keys():
        assert time.monotonic() < deadline
        core.start_compiled()
        core.start_followers()
        core.transfer()
        core.step()


def case(chance: random.Random, number: int, *temperatures: float) -> Generate:
    """Return a random request: a prompt that repeats itself, and any sampling with one of these temperatures."""
    passage = chance.choices(LETTERS, k=chance.randint(3, 30))
    prompt = [*passage, *chance.choices(range(40, 120), k=chance.randint(1, 20)), *passage]
    repeats = chance.random() < 0.7
    sampling = Sampling(
        temperature=chance.choice(temperatures or (0.0,)),
        top_p=chance.choice([1.0, 0.9]),
        top_k=chance.choice([0, 3]),
        seed=chance.randrange(1 << 30),
        repeat_penalty=chance.choice([1.0, 1.0, 1.2]),
        presence_penalty=chance.choice([0.0, 0.0, 0.5]),
        logit_bias=dict.fromkeys(LETTERS, 20.0) | {END: -50.0 if chance.random() < 0.5 else 8.0} if repeats else {},
    )
    return Generate(
        number, prompt, chance.randint(1, 80), sampling, "a",
        grammar=GRAMMAR if chance.random() < 0.3 else None,
        top_logprobs=2 if chance.random() < 0.3 else None,
    )  # fmt: skip


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps of three rows, with padding: plain and drafted tokens are computed, and rounded, alike."""
    monkeypatch.setattr("engine.scheduler.MOST_ROWS", ROWS)
    monkeypatch.setattr("engine.scheduler.padded", lambda _times, _width: ROWS)
    monkeypatch.setattr("engine.scheduler.seconds", lambda _table, _width: 0.001)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_drafted_answers_have_the_tokens_of_plain_ones(tiny_model: Path, model: Model) -> None:
    chance = random.Random(11)
    (plain, expected), (drafting, found) = (
        engine(tiny_model, model, speculation=speculation) for speculation in (False, True)
    )
    for number in range(CASES):
        request = case(chance, number, 0.0, 0.0, 0.3, 1.0)
        for core, recorder in ((plain, expected), (drafting, found)):
            run(core, recorder, [request])
            core.forget([number])  # the next answer gets the same cells in both
        assert found.tokens.get(number) == expected.tokens.get(number), request
        assert found.ends[number] == expected.ends[number]
        assert found.logprobs.get(number) == expected.logprobs.get(number)
    assert expected.drafted == 0
    assert found.accepted > 300
    assert found.drafted - found.accepted > 300


@pytest.mark.slow
def test_answers_in_company_continue_with_drafts_where_another_engine_stopped(tiny_model: Path, model: Model) -> None:
    chance = random.Random(12)
    drafting, found = engine(tiny_model, model, speculation=True)
    alone = Context(model, cells=2048, sequences=1, threads=1)
    for first in range(0, CASES, 3):
        requests = [replace(case(chance, number), sampling=COPYING, grammar=None) for number in range(first, first + 3)]
        run(drafting, found, requests)
        rests = []
        for request in requests:
            killed = chance.randrange(len(found.tokens[request.request]))
            said = found.tokens[request.request][:killed]
            number, tokens, room = CASES + request.request, [*request.tokens, *said], request.max_tokens - killed
            rests.append(replace(request, request=number, tokens=tokens, max_tokens=room, generated=killed))
        run(drafting, found, rests)
        for request, rest in zip(requests, rests, strict=True):
            said = [*rest.tokens[len(request.tokens) :], *found.tokens[rest.request]]
            assert len(said) == request.max_tokens
            assert_likeliest(alone, request.tokens, said)
    assert found.accepted > 300
    alone.close()


def assert_likeliest(alone: Context, prompt: list[int], said: list[int]) -> None:
    """Assert that each token is the likeliest, but for rounding: kernels round differently in wider steps."""
    alone.cut(0, 0)
    text = [*prompt, *said]
    alone.decode([(token, position, 0, position >= len(prompt) - 1) for position, token in enumerate(text[:-1])])
    for position in range(len(prompt) - 1, len(text) - 1):
        logits = alone.logits(position)[list(LETTERS)]
        assert logits[text[position + 1] - LETTERS[0]] >= logits.max() - 0.05


@pytest.mark.usefixtures("narrow")
def test_a_follow_up_finds_only_accepted_tokens_in_cells_and_in_the_store(
    tmp_path: Path, tiny_model: Path, model: Model
) -> None:
    cache = CacheConfig(f"sqlite://{tmp_path}/blocks.db", ttl=3600, max_bytes=1 << 28, keys=KeyRing.new().text)
    sampling = replace(COPYING, frequency_penalty=0.3)  # so that no passage repeats for ever
    first = Generate(1, [*range(65, 72), 40, *range(65, 72)] * 8, 300, sampling, "a")
    core, recorder = engine(tiny_model, model, speculation=True, cache=cache)
    run(core, recorder, [first])
    assert 0 < recorder.accepted < recorder.drafted
    follow_up = [*first.tokens, *recorder.tokens[1], 33, 34]
    run(core, recorder, [Generate(2, follow_up, 40, sampling, "a")])
    core.close()
    other, fetched = engine(tiny_model, model, speculation=True, cache=cache)
    run(other, fetched, [Generate(3, follow_up, 40, sampling, "a")])
    other.close()
    alone, computed = engine(tiny_model, model, speculation=False)
    run(alone, computed, [Generate(4, follow_up, 40, sampling, "a")])
    assert recorder.tokens[2] == fetched.tokens[3] == computed.tokens[4]


def test_most_tokens_of_a_copied_passage_are_accepted(tiny_model: Path, model: Model) -> None:
    core, recorder = engine(tiny_model, model, speculation=True)
    endless = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
    run(core, recorder, [Generate(1, [66, 65, 65], 200, endless, "a")])
    assert recorder.tokens[1] == [65] * 200
    assert recorder.accepted > 150
