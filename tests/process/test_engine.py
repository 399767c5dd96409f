"""The engine process with real llama.cpp and the tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from engine import (
    EngineDiedError,
    Finished,
    Generate,
    ModelLoadError,
    Sampling,
    Started,
    State,
    Stepped,
    Tokens,
    WorkerConfig,
)
from engine.process import EngineProcess
from tests.support.plans import MEASURED
from tests.support.pooling import until

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)
ENDLESS = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
END = 259  # <|im_end|>
PROMPT = list(range(40, 90))


async def answer(
    engine: EngineProcess,
    request: int,
    tokens: list[int],
    limit: int = 12,
    *,
    scope: str = "a",
    sampling: Sampling = GREEDY,
) -> tuple[int, list[int], str]:
    """Run one request to its end. Returns (cached tokens, new tokens, reason)."""
    cached, ids, reason = -1, [], ""
    async for message in engine.generate(Generate(request, tokens, limit, sampling, scope)):
        match message:
            case Started():
                cached = message.cached
            case Tokens():
                ids += message.ids
            case Finished():
                reason = message.reason
    return cached, ids, reason


async def test_a_greedy_answer_is_the_same_twice_and_ends_at_its_limit(engine: EngineProcess) -> None:
    _, first, reason = await answer(engine, 1, PROMPT, scope="a")
    _, second, _ = await answer(engine, 2, PROMPT, scope="b")
    assert first == second
    assert len(first) == 12
    assert reason == "length"


async def test_a_follow_up_computes_only_its_new_tokens(engine: EngineProcess) -> None:
    cached, ids, _ = await answer(engine, 1, PROMPT)
    assert cached == 0
    cached, _, _ = await answer(engine, 2, [*PROMPT, *ids, 33, 34])
    assert cached == len(PROMPT) + len(ids) - 1  # the token sampled last was never computed


async def test_a_cached_prefix_does_not_change_the_answer(engine: EngineProcess) -> None:
    _, fresh, _ = await answer(engine, 1, [*PROMPT, 33], scope="a")
    await answer(engine, 2, PROMPT, scope="b")
    cached, reused, _ = await answer(engine, 3, [*PROMPT, 33], scope="b")
    assert cached == len(PROMPT)
    assert reused == fresh


async def test_two_branches_share_their_trunk(engine: EngineProcess) -> None:
    await answer(engine, 1, PROMPT, limit=4)
    one, _, _ = await answer(engine, 2, [*PROMPT, 1, 2, 3])
    two, _, _ = await answer(engine, 3, [*PROMPT, 7, 8, 9])
    assert (one, two) == (len(PROMPT), len(PROMPT))


LONG = [40 + i * i % 50 for i in range(300)]


@pytest.mark.parametrize("scopes", ["aaaaaa", "abcdef"])
async def test_a_common_prefix_of_simultaneous_requests_is_computed_once(tiny_model: Path, scopes: str) -> None:
    rows = 0

    def stepped(step: Stepped) -> None:
        nonlocal rows
        rows += step.rows

    config = WorkerConfig(str(tiny_model), 4096, 8, MEASURED)
    engine = EngineProcess("0", config, on_change=lambda _: None, on_step=stepped)
    await engine.start()
    prompts = [[*LONG, 100 + i, 7, 8] for i in range(6)]
    runs = [
        answer(engine, i, prompt, 1, scope=scope) for i, (prompt, scope) in enumerate(zip(prompts, scopes, strict=True))
    ]
    running = asyncio.gather(*runs)
    await asyncio.sleep(0)
    engine.set_threads(1)  # after all requests have arrived
    together = await running
    alone = 6 if len(set(scopes)) > 1 else 1  # tokens of another tenant are not shared
    assert rows == alone * len(LONG) + 6 * 3
    assert sorted(cached for cached, _, _ in together) == [0] * alone + [len(LONG)] * (6 - alone)
    again = [await answer(engine, 10 + i, prompt, 1, scope=f"alone {i}") for i, prompt in enumerate(prompts)]
    assert [ids for _, ids, _ in together] == [ids for _, ids, _ in again]
    await engine.stop()


async def test_a_request_that_waits_for_the_prefix_of_another_continues_when_that_one_is_aborted(
    engine: EngineProcess,
) -> None:
    engine.set_threads(0)
    running = [asyncio.create_task(answer(engine, i, [*LONG, 100 + i, 7, 8], 2)) for i in range(4)]
    await asyncio.sleep(0)
    engine.abort(0)
    engine.abort(2)
    engine.set_threads(1)
    ended = [(cached, reason) for cached, _, reason in await asyncio.gather(*running)]
    assert ended == [(0, "aborted"), (0, "length"), (-1, "aborted"), (len(LONG), "length")]


async def test_another_scope_does_not_use_a_cached_prefix(engine: EngineProcess) -> None:
    await answer(engine, 1, PROMPT, scope="a")
    cached, _, _ = await answer(engine, 2, PROMPT, scope="b")
    assert cached == 0


async def test_sequences_that_share_steps_give_the_same_tokens_as_alone(engine: EngineProcess) -> None:
    prompts = [[i, *PROMPT[: 10 + i]] for i in range(6)]
    alone = [(await answer(engine, i, p, scope=f"alone {i}"))[1] for i, p in enumerate(prompts)]
    together = await asyncio.gather(*(answer(engine, 10 + i, p, scope=f"pair {i}") for i, p in enumerate(prompts)))
    assert [ids for _, ids, _ in together] == alone


async def test_equal_seeds_sample_equal_tokens_and_other_seeds_do_not(engine: EngineProcess) -> None:
    drawn = []
    for request, seed in enumerate((7, 7, 8)):
        sampling = Sampling(temperature=1.5, top_p=1.0, top_k=0, seed=seed)
        drawn.append((await answer(engine, request, PROMPT, sampling=sampling, scope=str(request)))[1])
    assert drawn[0] == drawn[1] != drawn[2]


async def test_a_logit_bias_and_an_end_of_generation_token_are_obeyed(engine: EngineProcess) -> None:
    forced = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
    assert (await answer(engine, 1, PROMPT, 3, sampling=forced))[1] == [65, 65, 65]
    ending = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={END: 1000.0})
    assert (await answer(engine, 2, PROMPT, 3, sampling=ending))[1:] == ([], "stop")


async def test_a_repeat_penalty_breaks_a_repetition(engine: EngineProcess) -> None:
    bias = {65: 1000.0, 66: 995.0}
    plain = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias=bias)
    penalized = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias=bias, presence_penalty=20.0)
    assert set((await answer(engine, 1, PROMPT, 6, sampling=plain))[1]) == {65}
    assert (await answer(engine, 2, PROMPT, 6, sampling=penalized))[1][:2] == [65, 66]


async def test_zero_new_tokens_only_encode_the_prompt(engine: EngineProcess) -> None:
    assert await answer(engine, 1, PROMPT, 0) == (0, [], "length")
    assert (await answer(engine, 2, [*PROMPT, 5], 1))[0] == len(PROMPT)


async def test_an_abort_ends_a_request_between_two_steps(engine: EngineProcess) -> None:
    reasons = []
    async for message in engine.generate(Generate(1, PROMPT, 1500, ENDLESS, "a")):
        match message:
            case Tokens():
                engine.abort(1)
            case Finished():
                reasons.append(message.reason)
    assert reasons == ["aborted"]
    assert engine.state is State.IDLE


async def test_without_threads_an_engine_waits_and_computes_nothing(engine: EngineProcess) -> None:
    engine.set_threads(0)
    running = asyncio.create_task(answer(engine, 1, PROMPT))
    done, _ = await asyncio.wait({running}, timeout=0.3)
    assert not done
    assert engine.threads == 0
    engine.set_threads(1)
    assert (await running)[2] == "length"


async def test_a_killed_engine_fails_its_requests_and_can_be_restarted(engine: EngineProcess) -> None:

    with pytest.raises(EngineDiedError):
        async for message in engine.generate(Generate(1, PROMPT, 1500, ENDLESS, "a")):
            if isinstance(message, Started):
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
    assert engine.state is State.FAILED
    await engine.start()
    engine.set_threads(1)
    assert (await answer(engine, 2, PROMPT, 3))[2] == "length"


async def test_an_unread_request_of_a_killed_process_does_not_keep_its_successor_busy(engine: EngineProcess) -> None:
    unread = engine.generate(Generate(1, PROMPT, 1500, ENDLESS, "a"))
    assert isinstance(await anext(unread), Started)
    engine.kill("for this test")
    await until(lambda: engine.state is State.FAILED)
    await engine.start()
    engine.set_threads(1)
    await answer(engine, 2, PROMPT, 3)
    assert engine.state is State.IDLE
    with pytest.raises(EngineDiedError, match="for this test"):
        async for _ in unread:
            pass


async def test_a_file_that_is_not_a_model_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "not-a-model.gguf"
    path.write_bytes(b"GGUF but not really")
    process = EngineProcess("0", WorkerConfig(str(path), 2048, 8, MEASURED), on_change=lambda _: None)
    with pytest.raises(ModelLoadError, match=r"not-a-model\.gguf"):
        await process.start()
    assert process.state is State.FAILED


async def test_an_engine_exits_when_its_gateway_is_killed(tiny_model: Path) -> None:
    gateway = f"""
        import asyncio
        from engine import WorkerConfig
        from engine.process import EngineProcess
        from tests.support.plans import MEASURED
        async def main():
            engine = EngineProcess("0", WorkerConfig({str(tiny_model)!r}, 2048, 8, MEASURED), on_change=lambda _: None)
            await engine.start()
            print(engine.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(gateway)], stdout=subprocess.PIPE) as parent:  # noqa: ASYNC220
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE
