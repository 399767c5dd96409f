"""Metrics: all that docs/api.md promises, in a format that promtool accepts, with correct values."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.resources import Meter
from tests.support.prometheus_server import promtool
from tests.support.running import Gateway

STORE = {"backend", "operation", "outcome"}
PROMISED: dict[str, tuple[str, set[str]]] = {
    "requests_total": ("counter", {"route", "status", "code"}),
    "limit": ("gauge", {"name"}),
    "requests_waiting": ("gauge", set()),
    "requests_running": ("gauge", set()),
    "queue_seconds": ("histogram", set()),
    "time_to_first_token_seconds": ("histogram", {"cache"}),
    "inter_token_seconds": ("histogram", set()),
    "request_seconds": ("histogram", set()),
    "prompt_tokens_total": ("counter", {"source"}),
    "generation_tokens_total": ("counter", set()),
    "prompt_worker_restarts_total": ("counter", set()),
    "engine_state": ("gauge", {"engine", "state"}),
    "engine_resident_bytes": ("gauge", {"engine"}),
    "engine_proportional_bytes": ("gauge", {"engine"}),
    "engine_cpu_seconds_total": ("counter", {"engine"}),
    "engine_threads": ("gauge", {"engine"}),
    "engine_restarts_total": ("counter", {"engine"}),
    "engine_unloads_total": ("counter", {"engine"}),
    "engine_load_seconds": ("gauge", {"engine"}),
    "engine_batch_size": ("histogram", set()),
    "engine_step_seconds": ("histogram", set()),
    "spec_tokens_drafted_total": ("counter", set()),
    "spec_tokens_accepted_total": ("counter", set()),
    "learned_step_seconds": ("gauge", {"engines", "threads", "kind", "rows"}),
    "cost_model_samples": ("gauge", set()),
    "trial_seconds_total": ("counter", {"kind"}),
    "kv_cells_used": ("gauge", {"engine"}),
    "kv_cells_total": ("unknown", {"engine"}),  # promtool lets no gauge end like a counter
    "store_operations_total": ("counter", STORE),
    "store_operation_seconds": ("histogram", STORE),
    "store_bytes_total": ("counter", STORE),
    "store_up": ("gauge", {"backend"}),
    "dropped_turns_total": ("counter", set()),
    "websocket_connections": ("gauge", set()),
    "sessions_active": ("gauge", set()),
    "gateway_resident_bytes": ("gauge", set()),
    "build_info": ("gauge", {"version", "llama_cpp_python", "model"}),
}
"""The table of docs/api.md, as (type, labels)."""
SHORT = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 3}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    """With two engines."""
    state = tmp_path_factory.mktemp("metrics") / "state"
    with Gateway(state, model=tiny_model, context=512, engines=2, cores=2, queue_limit=5) as gateway:
        yield gateway


@pytest.fixture
async def exposition(gateway: Gateway) -> AsyncIterator[str]:
    """The page after an answer, once its KV is stored."""
    async with gateway.connect() as conversation:
        await conversation.ask("What is tea? " * 20, **SHORT)
        for _ in range(500):
            text = gateway.get("/metrics").text
            if "samovar_store_bytes_total{" in text:
                yield text
                return
            await asyncio.sleep(0.02)
    raise AssertionError("nothing was stored")


async def test_the_metrics_page_has_every_documented_metric_with_its_type_and_labels(exposition: str) -> None:
    found = {}
    for family in text_string_to_metric_families(exposition):
        name = family.name + "_total" * (family.type == "counter")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name.removeprefix("samovar_")] = (family.type, labels)
        assert name.startswith("samovar_")
    assert found == PROMISED


async def test_promtool_finds_nothing_wrong_with_the_page(exposition: str) -> None:
    assert promtool("check", "metrics", text=exposition) == ""


async def test_histograms_of_time_reach_from_a_millisecond_to_two_minutes(exposition: str) -> None:
    for name, (kind, _) in PROMISED.items():
        if kind == "histogram" and name.endswith("_seconds") and not name.startswith("store"):
            bounds = {
                float(sample.labels["le"])
                for family in text_string_to_metric_families(exposition)
                for sample in family.samples
                if sample.name == f"samovar_{name}_bucket"
            }
            assert bounds >= {0.001, 0.01, 0.1, 1, 10, 60, 120}


async def test_what_is_refused_is_counted_once_whatever_its_door(gateway: Gateway) -> None:
    async with gateway.connect() as conversation:
        await conversation.send("{")
        await conversation.events()
        await conversation.ask("", model="gpt-5")
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        await client.post("/v1/responses", content="{", headers={"content-type": "application/json"})
        await client.post("/v1/chat/completions", json={"messages": [], "model": "gpt-5"})
        answer = await client.post("/v1/responses", json={"input": "x" * 5000})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    for route, code, times in (
        ("responses", "invalid_json", 2),
        ("responses", "model_not_found", 1),
        ("responses", "context_length_exceeded", 1),
        ("chat_completions", "invalid_request", 1),
    ):
        assert gateway.metric("samovar_requests_total", route=route, code=code) == times, code
    assert gateway.metric("samovar_requests_total", status="rejected") == 5


async def test_limits_are_exported_for_dashboard_thresholds(gateway: Gateway) -> None:
    limits = {"queue_limit": 5, "queue_timeout": 60, "cores": 2, "engines": 2, "context": 512, "user_concurrency": 2}
    assert {name: gateway.metric("samovar_limit", name=name) for name in limits} == limits
    assert gateway.metric("samovar_limit", name="kv_cells") == gateway.metric("samovar_kv_cells_total", engine="1")
    assert gateway.metric("samovar_limit", name="engine_memory") > 1e8


async def test_failures_are_counted_from_zero_so_that_the_first_one_is_an_increase(tmp_path: Path) -> None:
    with Gateway(tmp_path / "state") as gateway:
        text = gateway.get("/metrics").text
    for line in (
        'samovar_requests_total{code="engine_unavailable",route="responses",status="failed"} 0.0',
        'samovar_requests_total{code="queue_full",route="responses",status="rejected"} 0.0',
        'samovar_engine_restarts_total{engine="0"} 0.0',
        'samovar_store_operations_total{backend="sqlite",operation="put",outcome="timeout"} 0.0',
    ):
        assert line in text


def test_processor_time_continues_after_an_engine_restart() -> None:
    meter = Meter()
    with subprocess.Popen([sys.executable, "-c", "sum(range(10**7)); input()"], stdin=subprocess.PIPE) as process:
        while (first := meter.read(process.pid)).cpu_seconds < 0.05:
            pass
        process.kill()
    assert meter.read(process.pid).cpu_seconds == first.cpu_seconds
    ended = meter.read(None)
    assert (ended.cpu_seconds, ended.resident) == (first.cpu_seconds, 0)
    again = meter.read(os.getpid())
    assert again.cpu_seconds > first.cpu_seconds
    assert again.resident > 0
