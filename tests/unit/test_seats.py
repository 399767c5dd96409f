"""Responses that are decoded on seats, in a context with separate cells for each of them."""

from __future__ import annotations

import collections.abc
import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import BLOCK, Block, CacheConfig, Chain, KeyRing
from engine import Finished, Generate, Sampling, Tokens, WorkerConfig
from engine.channel import Channel
from engine.cost_model import BATCH
from engine.kv import seats
from engine.kv.connector import KVConnector
from engine.kv.manager import CachedSequence
from engine.kv.seats import Seats
from engine.llama import Context, Model, Streams
from engine.messages import Abort, Frames, SetThreads, frame, from_engine_decoder
from engine.scheduler import Sequence
from engine.worker import Worker
from tests.support.cells import Cells, Chairs
from tests.support.plans import MEASURED

Entries = collections.abc.Sequence[tuple[int, int, int, bool]]


def at_home(answers: list[Sequence], here: Seats[Any]) -> None:
    """Copy sequences to the main context, as the worker does before it computes or ends them there."""
    for answer in answers:
        if answer.request in here:
            assert here.leave(answer)
            answer.resident.tokens += answer.tokens[len(answer.resident.tokens) : answer.computed]


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(0, 2), st.booleans()), max_size=60))
def test_no_computed_token_is_lost_when_sequences_take_and_leave_seats(steps: list[tuple[set[int], int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"CELLS": 120, "COUNTS": (2, 6), "WORTH": 0, "SLACK": 3}.items():
            patch.setattr(seats, name, value)
        home = Cells(6)
        here = Seats(home, Chairs)
        answers = []
        for i in range(6):
            prefix = list(range(5 + 5 * i))
            home.held[i] = list(prefix)
            answers.append(Sequence(i, CachedSequence(i, tokens=list(prefix)), list(range(100)), len(prefix), 100))
        for chosen, padding, leaves in steps:
            group = [answers[i] for i in sorted(chosen) if answers[i].computed < 100]
            rows = min(len(group) + padding, 6)
            if group and here.takes(group, rows=rows, used=100):
                here.decode(group, rows=rows, threads=1)
                for answer in group:
                    answer.computed += 1
            else:
                at_home(group, here)
                for answer in group:
                    home.held[answer.request].append(answer.tokens[answer.computed])
                    answer.resident.tokens.append(answer.tokens[answer.computed])
                    answer.computed += 1
            if leaves:
                at_home(answers, here)
            assert home.held == [answer.resident.tokens for answer in answers]
        at_home(answers, here)
        assert home.held == [answer.tokens[: answer.computed] for answer in answers]


def test_many_short_responses_take_seats_and_others_do_not() -> None:
    here = Seats(Cells(16), Chairs)
    many = [Sequence(i, CachedSequence(i), [1] * 500, 400, 900) for i in range(16)]
    assert here.takes(many, rows=16, used=6400)
    assert not here.takes(many, rows=17, used=6400)
    assert not here.takes(many[:2], rows=2, used=800)
    assert here.takes(many[:8], rows=8, used=3200)
    many[0].computed = 760  # sixteen seats are too small for it to grow, eight are not
    assert not here.takes(many, rows=16, used=6400)
    assert here.takes(many[:8], rows=8, used=3200)


def test_a_token_computed_on_a_seat_has_the_same_logits_and_the_same_kv(tiny_model: Path) -> None:
    model = Model(tiny_model)
    home = Context(model, cells=1024, sequences=4, threads=1)
    alone = Context(model, cells=1024, sequences=1, threads=1)
    here = Seats(home, lambda _sequences, _cells: Streams(model, 4, 256))
    answers = []
    for i in range(3):
        tokens = [7 + (i + 1) * j % 50 for j in range(40 + 9 * i)]
        home.decode([(token, p, i, False) for p, token in enumerate(tokens)])
        answers.append(Sequence(i, CachedSequence(i, tokens=list(tokens)), [*tokens, 11, 12, 13], len(tokens), 100))
    at_home([answers[1]], here)  # does nothing, as it has no seat yet
    for group in (answers, [answers[0], answers[2]], answers):  # a dummy row replaces the absent sequence
        context, rows = here.decode(group, rows=3, threads=1)
        for answer, row in zip(group, rows, strict=True):
            seen = answer.tokens[: answer.computed + 1]
            alone.cut(0, 0)
            alone.decode([(token, p, 0, p == answer.computed) for p, token in enumerate(seen)])
            assert np.allclose(context.logits(row), alone.logits(len(seen) - 1), atol=1e-3)
            answer.computed += 1
        assert here.leave(answers[1])
        answers[1].resident.tokens = answers[1].tokens[: answers[1].computed]
    for answer in (answers[0], answers[2]):
        assert here.leave(answer)
        n = answer.computed
        home.decode([(9, n, answer.request, True)])
        alone.cut(0, 0)
        alone.decode([(token, p, 0, p == n) for p, token in enumerate([*answer.tokens[:n], 9])])
        assert np.allclose(home.logits(0), alone.logits(n), atol=1e-3)


@pytest.mark.parametrize("plain", [True, False])
def test_a_sequence_copied_from_its_seat_is_complete_in_the_main_context_and_continues(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    if not plain:  # as with a model whose cells have more fields than the position
        monkeypatch.setattr("engine.kv.states.tail", lambda _state, _start: None)
    model = Model(tiny_model)
    home, alone = (Context(model, cells=1024, sequences=4, threads=1) for _ in range(2))
    here = Seats(home, lambda _sequences, _cells: Streams(model, 4, 256))
    tokens = [7 + j % 50 for j in range(40)]
    home.decode([(token, p, 2, False) for p, token in enumerate(tokens)])
    answer = Sequence(2, CachedSequence(2, tokens=list(tokens)), [*tokens, *range(11, 31)], 40, 100)
    for written in range(2):
        for _ in range(5):
            here.decode([answer], rows=4, threads=1)
            answer.computed += 1
        assert here.copy(answer)
        assert (2 in here) is plain
        answer.resident.tokens = answer.tokens[: answer.computed]
        n = 45 + 5 * written
        assert home.length(2) == n
        for each in (home, alone):
            each.cut(2, n if each is home else 0)
            for p, token in list(enumerate([*answer.tokens[:n], 9]))[n if each is home else 0 :]:
                each.decode([(token, p, 2, True)])
        assert np.allclose(home.logits(0), alone.logits(0), atol=1e-3)
        home.cut(2, n)


def test_an_engine_generates_the_models_tokens_on_seats(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns of twelve conversations of different lengths, one of which is aborted on its seat."""
    steps = 0

    class Counted(Streams):
        def decode(self, entries: Entries) -> None:
            nonlocal steps
            steps += 1
            super().decode(entries)

    monkeypatch.setattr("engine.kv.places.Streams", Counted)
    monkeypatch.setattr("engine.worker.FLUSH_INTERVAL", 0.0)  # sends each token at once, so that the abort is in time
    model = Model(tiny_model)
    texts, ends = converse(model, WorkerConfig(str(tiny_model), 8192 + seats.CELLS, 32, MEASURED))
    assert steps > 100
    assert len(ends) == 24
    assert ends.pop(3) == "aborted"
    assert set(ends.values()) <= {"length", "stop"}
    alone = Context(model, cells=2048, sequences=1, threads=1)
    for prompt, said in texts.values():
        assert said
        alone.cut(0, 0)
        for start in range(0, len(prompt) + len(said) - 1, BATCH):
            step = list(enumerate([*prompt, *said]))[start : start + BATCH]
            alone.decode([(token, position, 0, True) for position, token in step])
            for index, (position, _) in enumerate(step):
                if len(prompt) - 1 <= position < len(prompt) + len(said) - 1:
                    logits = alone.logits(index)
                    drawn = said[position + 1 - len(prompt)]
                    # Kernels round differently in wider steps: of two equally likely tokens, either may be sampled.
                    assert logits[drawn] >= logits.max() - 0.05


def test_a_block_that_is_filled_on_a_seat_is_stored_at_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise more than a block of a response would be recomputed when its engine dies."""
    late: list[int] = []

    class Watched(KVConnector):
        def store(
            self, resident: CachedSequence, chain: Chain, blocks: collections.abc.Sequence[Block], **done: Any
        ) -> None:
            if not resident.idle:  # the request still runs
                late.append(len(resident.tokens) - blocks[-1].end)
            super().store(resident, chain, blocks, **done)

    monkeypatch.setattr("engine.kv.cache.KVConnector", Watched)
    monkeypatch.setattr("tests.unit.test_seats.seats.WORTH", 0)
    cache = CacheConfig(f"sqlite://{tmp_path}/blocks.db", ttl=3600, max_bytes=1 << 28, keys=KeyRing.new().text)
    config = WorkerConfig(str(tiny_model), 8192 + seats.CELLS, 32, MEASURED, cache=cache)
    _, ends = converse(Model(tiny_model), config)
    assert len(ends) == 24
    answers = [tokens for tokens in late if tokens < BLOCK]  # a step of a prompt may fill a block and more
    assert answers.count(0) > 24


Texts = dict[int, tuple[list[int], list[int]]]


def converse(model: Model, config: WorkerConfig) -> tuple[Texts, dict[int, str]]:
    """Return the (prompt, response) tokens and the end reason of each request."""
    near, far = socket.socketpair()
    texts: Texts = {}
    ends: dict[int, str] = {}
    with near, far:
        worker = Worker(Channel(near), model, config)
        gateway = threading.Thread(target=ask, args=(far, texts, ends))
        gateway.start()
        with contextlib.suppress(EOFError, BrokenPipeError):
            worker.run()
        gateway.join()
    return texts, ends


def ask(far: socket.socket, texts: Texts, ends: dict[int, str]) -> None:
    """Play the gateway: run two turns of each conversation, then close the socket."""
    frames = Frames()
    far.sendall(frame(SetThreads(1)))
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)
    prompts = {i: [(i * 31 + j * (i + 1)) % 200 + 20 for j in range(150 + 10 * i)] for i in range(12)}
    for turn in (0, 100):
        for i, prompt in prompts.items():
            texts[turn + i] = (prompt, [])
            far.sendall(frame(Generate(turn + i, prompt, 100 + 13 * i, greedy, str(i))))
        left, latest = {turn + i for i in prompts}, time.monotonic() + 60
        while left and time.monotonic() < latest:
            for body in frames.feed(far.recv(1 << 20)):
                message = from_engine_decoder.decode(body)
                if isinstance(message, Tokens):
                    said = texts[message.request][1]
                    said += message.ids
                    if message.request == 3 and 20 <= len(said) < 60:
                        far.sendall(frame(Abort(3)))
                elif isinstance(message, Finished):
                    ends[message.request] = message.reason
                    left.discard(message.request)
        prompts = {i: [*prompt, *texts[turn + i][1], 30, 31, 32] for i, prompt in prompts.items()}
    far.shutdown(socket.SHUT_RDWR)
