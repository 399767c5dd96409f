"""Prompt workers: what they return, and that whatever ends one of them is one request's error and nobody else's."""

from __future__ import annotations

import array
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import Model
from gateway.errors import (
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
)
from gateway.prompts.encoder import Encoder
from gateway.prompts.messages import Configuration, Encode, Encoded
from gateway.prompts.pool import LOWEST, WORKERS, PromptWorkerError, PromptWorkers
from gateway.prompts.queue import JobQueue, Waiting
from gateway.protocol.tools import FunctionTool, JsonObject
from tests.support.encoding import LocalEncoder
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model

LOOPING = (
    "{% if messages[0].content.startswith('loop') %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}{% endif %}" + CHAT_TEMPLATE
)
"""Hangs on a message that asks for it."""
GREEDY = (
    "{% if messages[0].content.startswith('loop') %}{% set ns = namespace(text='x' * 1000000) %}"
    "{% for i in range(99) %}{% set ns.text = ns.text + ns.text %}{% endfor %}{% endif %}" + CHAT_TEMPLATE
)
"""Doubles a text until there is no memory left, on the same message."""


def job(content: str = "hello", **fields: Any) -> Encode:
    return Encode(messages=[{"role": "user", "content": content}], began=5, **fields)


def bad_job(content: str = "loop") -> Encode:
    """Messages for which LOOPING loops and GREEDY is greedy."""
    return Encode(messages=[{"role": "user", "content": content}] * 2, began=5)


def ids(encoded: Encoded) -> list[int]:
    return array.array("i", encoded.ids).tolist()


@asynccontextmanager
async def running(model: Path, template: str = CHAT_TEMPLATE, **options: Any) -> AsyncIterator[PromptWorkers]:
    workers = PromptWorkers(Configuration(model=str(model), template=template, **options))
    task = asyncio.create_task(workers.run())
    try:
        yield workers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - other processes set no event
        await asyncio.sleep(0.01)


def priorities(workers: PromptWorkers) -> list[int]:
    with suppress(ProcessLookupError):  # one was just replaced
        return [os.getpriority(os.PRIO_PROCESS, pid) for pid in workers.pids()]
    return []


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def test_workers_return_what_the_encoder_returns(tiny_model: Path, model: Model) -> None:
    tool = FunctionTool(name="f", parameters={"type": "object", "properties": {"n": {"const": 10**40}}})
    jobs = [
        job("你好 <|im_end|>", instructions="Be brief."),
        job("more", after="assistant"),
        job("x", format=JsonObject()),
        job("x", tools=[tool], choice="none"),
        job("x" * 400, answer=False),
    ]
    local = LocalEncoder(model, CHAT_TEMPLATE, "We are an office.")
    async with running(tiny_model, instructions="We are an office.") as workers:
        for each in jobs:
            assert await workers.encode(each, user="anna") == await local.encode(each, user="anna")
        assert await workers.operator_prefix(5) == await local.operator_prefix(5) != b""


async def test_a_template_that_hangs_is_one_requests_error(tiny_model: Path) -> None:
    async with running(tiny_model, LOOPING, processor_seconds=0.3) as workers:
        deaths: list[int] = []
        workers.on_death = lambda: deaths.append(1)
        expected = await workers.encode(job(), user="anna")
        hanging = [asyncio.create_task(workers.encode(bad_job(), user="bob")) for _ in range(2)]
        assert await workers.encode(job(), user="anna") == expected
        for task in hanging:
            with pytest.raises(InvalidRequestError, match="takes too long"):
                await task
        assert await workers.encode(job(), user="anna") == expected
        assert len(deaths) == 2


async def test_elapsed_time_is_bounded_for_a_worker_that_gets_no_processor(tiny_model: Path) -> None:
    async with running(tiny_model, LOOPING, seconds=1.0) as workers:
        await workers.encode(job(), user="anna")
        task = asyncio.create_task(workers.encode(bad_job(), user="anna"))
        await until(lambda: any(psutil.Process(pid).status() == psutil.STATUS_RUNNING for pid in workers.pids()))
        with pytest.raises(InvalidRequestError, match="takes too long"):
            await task


async def test_a_slow_job_gets_the_lowest_priority_and_its_worker_is_replaced(tiny_model: Path) -> None:
    async with running(tiny_model, LOOPING, processor_seconds=30.0) as workers:
        await until(lambda: len(workers.pids()) == WORKERS)
        usual = priorities(workers)
        task = asyncio.create_task(workers.encode(bad_job(), user="anna"))
        await until(lambda: LOWEST in priorities(workers))
        [slow] = [pid for pid in workers.pids() if os.getpriority(os.PRIO_PROCESS, pid) == LOWEST]
        os.kill(slow, signal.SIGSEGV)
        with pytest.raises(InvalidRequestError, match="crashed"):
            await task
        await until(lambda: priorities(workers) == usual)
        # A job that ends by itself, though slowly, leaves a fresh worker behind as well.
        await workers.encode(job("x" * 400_000), user="anna")
        await until(lambda: priorities(workers) == usual)


async def test_memory_is_bounded(tiny_model: Path) -> None:
    async with running(tiny_model, GREEDY, memory=400 << 20) as workers:
        with pytest.raises(InvalidRequestError, match="memory"):
            await workers.encode(bad_job(), user="anna")
        await workers.encode(job(), user="anna")


@pytest.mark.parametrize("pre", ["deepseek-llm", "deepseek-coder", "falcon", "bloom"])
async def test_a_word_of_a_million_letters_crashes_no_worker(tmp_path: Path, pre: str) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", pre=pre)
    async with running(path) as workers:
        expected = await workers.encode(job(), user="anna")
        tokens = ids(await workers.encode(job("x" * 40_000), user="anna"))
        assert len(tokens) > 40_000
        with pytest.raises(InvalidRequestError, match="crashed") if pre != "falcon" else nullcontext():
            await workers.encode(job("x" * 1_000_000), user="anna")
        assert await workers.encode(job(), user="anna") == expected


async def test_a_killed_worker_or_host_costs_no_request(tiny_model: Path) -> None:
    async with running(tiny_model, LOOPING, processor_seconds=1.0) as workers:
        expected = await workers.encode(job(), user="anna")
        for _ in range(3):
            for pid in workers.pids():
                os.kill(pid, signal.SIGKILL)
            assert await asyncio.gather(*(workers.encode(job(), user=f"{i}") for i in range(4))) == [expected] * 4
        [host] = {psutil.Process(pid).ppid() for pid in workers.pids()}
        old = workers.pids()
        os.kill(host, signal.SIGKILL)
        assert await workers.encode(job(), user="anna") == expected
        await until(lambda: all(map(has_ended, old)))


@pytest.mark.slow
@pytest.mark.parametrize("stops_host", [False, True])
async def test_stopped_workers_and_hosts_are_replaced(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, *, stops_host: bool
) -> None:
    monkeypatch.setattr("gateway.prompts.pool.OVERDUE_SECONDS", 0.5)
    async with running(tiny_model, seconds=0.5) as workers:
        expected = await workers.encode(job(), user="anna")
        [host] = {psutil.Process(pid).ppid() for pid in workers.pids()}
        old = workers.pids()
        for pid in [host] if stops_host else old:
            os.kill(pid, signal.SIGSTOP)
        if stops_host:  # which cannot report the deaths of its workers
            for pid in old:
                os.kill(pid, signal.SIGKILL)
        assert await workers.encode(job(), user="anna") == expected
        await until(lambda: all(map(has_ended, [host, *old])))


async def test_long_jobs_of_many_users_do_not_keep_a_short_one_waiting(tiny_model: Path) -> None:
    long = "loop" + "x" * 100_000  # longer than a short job, and looping: no worker comes back while the test runs
    async with running(tiny_model, LOOPING, processor_seconds=60.0, seconds=60.0) as workers:
        await workers.encode(job(), user="anna")
        tasks = [asyncio.create_task(workers.encode(bad_job(long), user=f"{i}")) for i in range(20)]
        await asyncio.sleep(0)
        for _ in range(10):
            await workers.encode(job(), user="anna")
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()


async def test_one_users_jobs_delay_anothers_by_one() -> None:
    queue = JobQueue()
    jobs = [Waiting("anna", b"1"), Waiting("anna", b"2"), Waiting("anna", b"3"), Waiting("bob", b"4")]
    for each in jobs:
        queue.add(each)
    jobs[1].result.cancel()
    taken = [queue.take(short_only=False) for _ in range(4)]
    assert [each.body for each in taken if each] == [b"1", b"4", b"3"]
    queue.add(Waiting("anna", bytes(1 << 20)))
    queue.add(Waiting("anna", b"5"))
    rest = [queue.take(short_only=only) for only in (True, True, False)]
    assert [len(each.body) if each else 0 for each in rest] == [1, 0, 1 << 20]
    with pytest.raises(QueueFullError):
        for _ in range(40):
            queue.add(Waiting("anna", bytes(1 << 20)))


async def test_a_model_that_is_gone_is_named_and_found_again(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf")
    async with running(path) as workers:
        await workers.encode(job(), user="anna")
        hidden = path.rename(tmp_path / "hidden.gguf")
        [host] = {psutil.Process(pid).ppid() for pid in workers.pids()}
        os.kill(host, signal.SIGKILL)
        await until(lambda: not workers.pids())
        with pytest.raises(EngineUnavailableError, match=r"model\.gguf"):
            await workers.encode(job(), user="anna")
        hidden.rename(path)
        await until(lambda: len(workers.pids()) == 2)
        await workers.encode(job(), user="anna")


async def test_a_text_too_long_for_any_tokenizer_is_refused_and_truncation_skips_it(tiny_model: Path) -> None:
    async with running(tiny_model) as workers:
        with pytest.raises(ContextLengthExceededError, match="too long for any tokenization"):
            await workers.encode(job("x" * 100_000, limit=100), user="anna")
        history = [{"role": "user", "content": content} for content in ("x" * 100_000, "y" * 10, "z" * 10)]
        encoded = await workers.encode(Encode(messages=history, began=5, limit=200, truncate=True), user="anna")
        assert encoded.turn == 1
        assert len(ids(encoded)) <= 100


async def test_a_fault_of_the_worker_is_no_error_of_the_request(tiny_model: Path) -> None:
    # An Encode without a role in a message is something that only a fault of the gateway can send.
    async with running(tiny_model) as workers:
        broken = Encode(messages=[{"content": "x"}, {"content": "y"}], began=5, limit=10, truncate=True)
        with pytest.raises(PromptWorkerError):
            await workers.encode(broken, user="anna")
        await workers.encode(job(), user="anna")


def test_workers_end_with_a_gateway_that_is_killed(tiny_model: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from tests.process.test_prompt_workers import bad_job, job, running, LOOPING\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    async with running(Path(sys.argv[1]), LOOPING, processor_seconds=1.0) as workers:\n"
        "        await workers.encode(job(), user='anna')\n"
        "        asyncio.create_task(workers.encode(job('loop'), user='anna'))\n"
        "        print(flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tiny_model)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        family = descendants(process.pid)
        assert len(family) == 3
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_the_encoder_reads_whitespace_at_the_edges_in_linear_time(model: Model) -> None:
    encoder = Encoder(model.vocabulary, CHAT_TEMPLATE, instructions="")
    for content in ("a" + " " * 1_000_000 + "b", " " * 1_000_000, "a" + " " * 1_000_000):
        assert isinstance(encoder.run(job(content)), Encoded)
