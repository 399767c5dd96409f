"""From the start to the first request: engines are loaded, instructions computed, and the machine is learned."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.responses.idle_work import IdleWork
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.support.tiny_model import write_tiny_model

INSTRUCTIONS = "You keep the samovar of a railway carriage and know all about tea. " * 6
ASKED = {"input": "hello", "max_output_tokens": 3}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def loaded(gateway: Gateway) -> float:
    return gateway.metric("samovar_engine_state", state="idle") + gateway.metric("samovar_engine_state", state="busy")


def cached(gateway: Gateway) -> int:
    """Ask a first question, and return how many tokens of its prompt were not computed."""
    usage = gateway.post("/v1/responses", ASKED).json()["usage"]
    return int(usage["input_tokens_details"]["cached_tokens"])


@pytest.fixture
def gateway(tmp_path: Path, tiny_model: Path) -> Iterator[Gateway]:
    prepared = Gateway(
        tmp_path / "state", model=tiny_model, context=512, cores=2, engines=2, instructions=INSTRUCTIONS, preload=True
    )
    yield prepared
    prepared.stop()


@pytest.mark.slow
def test_engines_and_instructions_are_ready_before_the_first_request(gateway: Gateway) -> None:
    gateway.start()
    wait_until(lambda: loaded(gateway) == 2 and gateway.metric("samovar_engine_state", state="busy") == 0)
    wait_until(lambda: gateway.metric("samovar_engine_step_seconds_count") >= 1)
    wait_until(lambda: gateway.metric("samovar_store_operations_total", operation="put", outcome="ok") >= 1)
    assert cached(gateway) > 128
    assert "idle work failed" not in gateway.log()


@pytest.mark.slow
def test_with_keys_only_the_operators_part_is_computed_ahead(gateway: Gateway) -> None:
    command = [*SAMOVAR, "keys", "add", "anna", f"--state-dir={gateway.state}"]
    key = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()
    gateway.start()
    wait_until(lambda: loaded(gateway) == 2)
    wait_until(lambda: gateway.metric("samovar_store_operations_total", operation="put", outcome="ok") >= 1)
    usage = gateway.post("/v1/responses", ASKED, authorization=f"Bearer {key}").json()["usage"]
    template = 10
    assert 128 < usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"] - template


@pytest.mark.slow
def test_without_preload_no_engine_is_loaded_until_a_request_comes(gateway: Gateway) -> None:
    gateway.start("--preload=no", "--self-test=yes")
    time.sleep(0.5)
    assert loaded(gateway) == 0
    assert cached(gateway) == 0
    assert loaded(gateway) == 1


@pytest.mark.slow
def test_the_first_start_tests_the_machine_and_the_first_request_ends_that(gateway: Gateway) -> None:
    gateway.start("--self-test=yes")
    wait_until(lambda: gateway.metric("samovar_cost_model_samples") > 20)
    answer = gateway.post("/v1/responses", ASKED)
    assert answer.json()["status"] in ("completed", "incomplete")
    assert "interrupted by a request" in gateway.log()
    assert gateway.metric("samovar_kv_cells_used") < 1000
    gateway.stop()
    gateway.start("--self-test=yes")
    wait_until(lambda: loaded(gateway) == 2)
    gateway.post("/v1/responses", ASKED)
    assert gateway.log().count("self-test") == 1, "what was learned is known"


@pytest.mark.slow
def test_a_gateway_that_stops_during_the_self_test_leaves_no_engine(gateway: Gateway) -> None:
    gateway.start("--self-test=yes")
    wait_until(lambda: gateway.metric("samovar_cost_model_samples") > 5)
    engines = gateway.engines()
    assert gateway.stop() == 0
    assert not any(engine.is_running() for engine in engines)


async def test_a_request_before_the_start_prevents_the_work() -> None:
    work, done = IdleWork(), list[str]()

    async def job() -> None:
        done.append("job")

    work.interrupt()
    work.start([job])
    await work.close()
    assert done == []


async def test_a_request_ends_the_job_and_those_after_it() -> None:
    work, done = IdleWork(), list[str]()

    async def endless() -> None:
        done.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            done.append("ended")

    async def never() -> None:
        done.append("never")

    work.start([endless, never])
    await asyncio.sleep(0)
    work.interrupt()
    await work.close()
    assert done == ["begun", "ended"]


@pytest.mark.slow
async def test_two_users_with_the_same_instructions_compute_them_once(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model.gguf", context=8192)
    instructions = INSTRUCTIONS * 10  # long enough for the second request to arrive in the meantime
    settings: dict[str, object] = {"model": model, "cores": 2, "engines": 2, "preload": True}
    with Gateway(tmp_path / "state", **settings) as gateway:
        wait_until(lambda: loaded(gateway) == 2)

        async def ask(text: str, greeting: str) -> int:
            async with gateway.connect() as conversation:
                events = await conversation.ask(text, instructions=greeting + instructions, max_output_tokens=3)
                return int(events[-1].response.usage.input_tokens_details.cached_tokens)

        # Several attempts: on a busy machine the second request may arrive after the first one's prompt is computed.
        shared = [
            max(await asyncio.gather(ask("tea?", word), ask("milk?", word))) for word in ("Hi. ", "Hello. ", "Hey. ")
        ]
        assert max(shared) > len(instructions) * 0.9
