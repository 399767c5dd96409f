"""Dashboard and rules on a real Prometheus, while a gateway, its Redis and its engines go through failures."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.ops.test_board import RULES, board, expressions, rules
from tests.support.prometheus_server import PrometheusServer
from tests.support.redis_server import RedisServer
from tests.support.running import Gateway, said

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0}
FOR = "5s"
"""Replaces the minutes of `for` in the alerts."""
IDLE_SECONDS = 4
CROWD = 40
EXPECTED = {"SamovarEngineCrashed", "SamovarTurnedAway", "SamovarStoreAway"}


class Scene:
    """A gateway that Prometheus scrapes, and the start time."""

    def __init__(self, gateway: Gateway, redis: RedisServer, prometheus: PrometheusServer) -> None:
        """Start recording."""
        self.gateway = gateway
        self.redis = redis
        self.prometheus = prometheus
        self._began = time.monotonic()

    def asked(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression over the whole time, without gaps and NaN."""
        query = expression.replace("$__rate_interval", "10s").replace("$instance", ".+").replace("$engine", ".+")
        found = self.prometheus.range(query, seconds=time.monotonic() - self._began + 2)
        numbers = [
            {**series, "values": [float(value) for _, value in series["values"] if not math.isnan(float(value))]}
            for series in found
        ]
        return [series for series in numbers if series["values"]]

    def peak(self, name: str, **labels: str) -> float:
        """Return the maximum of the sum of a metric's series with these labels."""
        selector = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return max((max(series["values"]) for series in self.asked(f"sum(samovar_{name}{{{selector}}})")), default=0.0)

    async def until(self, expression: str, condition: Callable[[float], bool] = bool) -> None:
        """Wait until the value of `expression` fulfils `condition`."""
        for _ in range(300):
            found = self.prometheus.query(expression)
            if found and condition(float(found[0]["value"][1])):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{expression}: {found}")


def shortened_rules(folder: Path) -> Path:
    """Return the rules with short `for` times."""
    rules = yaml.safe_load(RULES.read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = FOR
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(rules, allow_unicode=True))
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncIterator[Scene]:
    """State after a chat, overload, a crash, an unload, a continued conversation and an outage."""
    folder = tmp_path_factory.mktemp("board")
    settings: dict[str, object] = {"model": tiny_model, "context": 512, "engines": 2, "cores": 2, "queue_limit": 8}
    settings |= {"idle_unload": IDLE_SECONDS, "instructions": "Be brief. " * 8}
    with RedisServer(folder) as redis, Gateway(folder / "state", cache=redis.url, **settings) as gateway:
        target = gateway.url.removeprefix("http://")
        with PrometheusServer(folder / "prometheus", [target], [shortened_rules(folder)]) as prometheus:
            scene = Scene(gateway, redis, prometheus)
            await scene.until("count(samovar_build_info)")
            previous = await talk(scene)
            await crowd(scene)
            await crash(scene)
            await scene.until('sum(samovar_engine_state{state="stopped"})', lambda stopped: stopped == 2)
            await come_back(scene, previous)
            await outage(scene)
            await asyncio.sleep(2)  # for the last scrape and rule evaluation
            yield scene


async def talk(scene: Scene) -> str:
    """Run two turns and send an invalid request; return the id of the last turn."""
    async with scene.gateway.connect() as conversation:
        first = await conversation.ask("茶炊是什么?", max_output_tokens=20, **ENDLESS)
        second = await conversation.ask(
            "?", previous_response_id=first[-1].response.id, max_output_tokens=20, **ENDLESS
        )
        await conversation.send("{")
        await conversation.events()
        await scene.until("samovar_websocket_connections")
        return str(second[-1].response.id)


async def crowd(scene: Scene) -> None:
    """Send more concurrent requests than the queue holds, so that some are rejected; Prometheus sees others run."""

    async def ask(lane: int) -> str:
        async with scene.gateway.connect() as conversation:
            events = await conversation.ask(f"{lane}", max_output_tokens=120, **ENDLESS)
            return str(events[-1].type)

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(lane)) for lane in range(CROWD)]
        while not scene.gateway.metric("samovar_requests_running"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with scene.gateway.suspended():
            for gauge in ("requests_running", "engine_threads", "kv_cells_used", 'engine_state{state="busy"}'):
                await scene.until(f"sum(samovar_{gauge})")
    assert "response.incomplete" in [task.result() for task in asked]
    await scene.until('sum(samovar_requests_total{code="queue_full"})')


async def crash(scene: Scene) -> None:
    """Kill an engine during an answer, which continues."""
    async with scene.gateway.connect() as conversation:
        await conversation.send({"type": "response.create", "input": "x", "max_output_tokens": 300, **ENDLESS})
        events = []
        async for event in conversation.stream():
            events.append(event)
            if event.type == "response.output_text.delta":
                break
        scene.gateway.kill_engines()
        events += await conversation.events()
        assert said(events) == "A" * 300
    await scene.until("sum(samovar_engine_restarts_total)")


async def come_back(scene: Scene, previous: str) -> None:
    """Continue a conversation after all engines were unloaded: its KV blocks come from the store."""
    async with scene.gateway.connect() as conversation:
        events = await conversation.ask("!", previous_response_id=previous, max_output_tokens=20, **ENDLESS)
        assert events[-1].response.usage.input_tokens_details.cached_tokens > 0
    await scene.until('samovar_prompt_tokens_total{source="store"}')


async def outage(scene: Scene) -> None:
    """Stop Redis during a chat."""
    scene.redis.stop()
    async with scene.gateway.connect() as conversation:
        await conversation.ask("still there?", max_output_tokens=20, **ENDLESS)
        await scene.until("samovar_store_up == bool 0")
        await scene.until('ALERTS{alertname="SamovarStoreAway",alertstate="firing"}')
        await conversation.ask("and now?", max_output_tokens=20, **ENDLESS)


async def test_every_query_of_every_panel_returns_data(scene: Scene) -> None:
    asked = list(expressions("samovar"))
    assert len(asked) > 50
    assert [expression for expression in asked if not scene.asked(expression)] == []


async def test_every_recording_rule_returns_data_and_no_rule_fails(scene: Scene) -> None:
    assert {rule["health"] for rule in scene.prometheus.rules()} == {"ok"}
    records = [rule["record"] for rule in rules() if "record" in rule]
    assert [record for record in records if not scene.asked(record)] == []


async def test_the_alerts_that_should_fire_did_and_no_other(scene: Scene) -> None:
    fired = scene.asked('ALERTS{alertstate="firing"}')
    assert {series["metric"]["alertname"] for series in fired} == EXPECTED


async def test_alerts_name_the_gateway_and_the_problem(scene: Scene) -> None:
    target = scene.gateway.url.removeprefix("http://")
    alerts = [alert for rule in scene.prometheus.rules() for alert in rule.get("alerts", ())]
    assert alerts
    for alert in alerts:
        assert target in alert["annotations"]["summary"]
        assert target in alert["annotations"]["zh"]
        assert "error" not in " ".join(alert["annotations"].values())


async def test_the_metrics_show_what_happened(scene: Scene) -> None:
    peak = scene.peak
    for cache in ("hit", "partial", "miss"):
        assert peak("time_to_first_token_seconds_count", cache=cache) > 0, cache
    assert min(peak("prompt_tokens_total", source=source) for source in ("computed", "engine", "store")) > 0
    assert peak("engine_restarts_total") >= 1
    assert peak("engine_unloads_total") >= 2
    assert peak("engine_load_seconds", engine="0") > 0
    assert peak("engine_cpu_seconds_total") > 0
    assert peak("engine_resident_bytes", engine="0") > 10e6
    assert 0 < peak("engine_proportional_bytes", engine="0") <= peak("engine_resident_bytes", engine="0")
    assert 1 <= peak("engine_threads") <= 2
    assert peak("kv_cells_used") > 0
    assert peak("sessions_active") > 10
    assert peak("requests_total", status="rejected", code="invalid_json") == 1
    assert peak("requests_total", status="incomplete") > 3
    assert peak("requests_total", status="failed") == 0
    assert peak("store_operations_total", operation="get", outcome="hit") > 0
    assert peak("store_bytes_total", operation="put") > 0
    for state in ("stopped", "idle", "busy"):
        assert peak("engine_state", state=state) > 0, state
    assert scene.prometheus.query("samovar_store_up")[0]["value"][1] == "0"


async def test_the_panels_show_what_happened(scene: Scene) -> None:
    panels = {panel["title"]: panel["targets"] for panel in board("samovar")["panels"] if panel.get("targets")}

    def shown(title: str) -> float:
        series = [series for target in panels[title] for series in scene.asked(target["expr"])]
        return float(max(max(one["values"]) for one in series))

    assert shown("Running requests") >= 1
    assert shown("Batch size") > 1
    assert 0 < shown("Cached share of prompt tokens") < 1
    assert shown("Loads and unloads") > 0
    assert shown("Restarts after crashes") > 0
    assert shown("Failed and rejected requests by code") > 0
    assert shown("Failed store operations") > 0
    assert shown("CPU") >= 2  # the limit


async def test_the_tiles_are_red_where_something_is_wrong_now(scene: Scene) -> None:
    tiles = {
        panel["title"]: panel["targets"][0]["expr"] for panel in board("samovar")["panels"] if panel["type"] == "stat"
    }
    latest = {title: scene.asked(expression)[-1]["values"][-1] for title, expression in tiles.items()}
    assert latest["Store"] == 0
    assert latest["Alerts"] >= 1
    assert latest["Gateways"] == 1
    assert latest["Failed engines"] == 0
    assert latest["Failed answers"] == 0
