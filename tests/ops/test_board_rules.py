"""Each alert on synthetic series with promtool: it fires only after its `for` time, and no other fires."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.test_board import RULES, rules
from tests.support.prometheus_server import promtool

WHERE = 'job="samovar",instance="a:8000"'
FIRING = 'ALERTS{alertstate="firing"}'
HEALTHY = {
    f"up{{{WHERE}}}": "1x80",
    f'samovar_engine_state{{{WHERE},engine="0",state="failed"}}': "0x80",
    f'samovar_engine_state{{{WHERE},engine="1",state="failed"}}': "0x80",
    f'samovar_engine_restarts_total{{{WHERE},engine="0"}}': "2x80",
    f'samovar_engine_resident_bytes{{{WHERE},engine="0"}}': "6e8x80",
    f'samovar_requests_total{{{WHERE},route="responses",status="completed",code=""}}': "0+10x80",
    f'samovar_requests_total{{{WHERE},route="responses",status="failed",code="engine_unavailable"}}': "1x80",
    f'samovar_requests_total{{{WHERE},route="responses",status="failed",code="store_unavailable"}}': "0x80",
    f'samovar_requests_total{{{WHERE},route="responses",status="rejected",code="queue_full"}}': "0x80",
    f'samovar_requests_total{{{WHERE},route="responses",status="rejected",code="invalid_json"}}': "0+9x80",
    f"samovar_requests_waiting{{{WHERE}}}": "20x80",
    f'samovar_limit{{{WHERE},name="queue_limit"}}': "64x80",
    f'samovar_limit{{{WHERE},name="engine_memory"}}': "1e9x80",
    f'samovar_store_up{{{WHERE},backend="redis"}}': "1x80",
    f'samovar_store_operations_total{{{WHERE},backend="redis",operation="open",outcome="corrupt"}}': "0x80",
    f'samovar_time_to_first_token_seconds_bucket{{{WHERE},cache="miss",le="5.0"}}': "0+5x80",
    f'samovar_time_to_first_token_seconds_bucket{{{WHERE},cache="miss",le="25.0"}}': "0+5x80",
    f'samovar_time_to_first_token_seconds_bucket{{{WHERE},cache="miss",le="+Inf"}}': "0+5x80",
    f'samovar_inter_token_seconds_bucket{{{WHERE},le="0.5"}}': "0+50x80",
    f'samovar_inter_token_seconds_bucket{{{WHERE},le="1.0"}}': "0+50x80",
    f'samovar_inter_token_seconds_bucket{{{WHERE},le="+Inf"}}': "0+50x80",
}
"""A healthy gateway with short waits and client errors: a value every 15 s for 20 minutes."""


@dataclass(frozen=True)
class Problem:
    """A problem: the changed series, a time at which no alert fires yet, and one at which `alerts` fire."""

    changes: dict[str, str]
    silent: str
    fires: str
    alerts: dict[str, str]
    """Additional labels by alert."""


def series(metric: str, *labels: str) -> str:
    """Return the only series of HEALTHY with this metric and these labels."""
    starts = (f"{metric}{{", f"samovar_{metric}")
    [found] = [name for name in HEALTHY if name.startswith(starts) and all(label in name for label in labels)]
    return found


PROBLEMS = {
    "down": Problem({series("up"): "1x4 0x80"}, "2m", "2m30s", {"SamovarDown": 'severity="critical"'}),
    "no engine": Problem(
        {series("engine_state", 'engine="0"'): "0x4 1x80", series("engine_state", 'engine="1"'): "0x4 1x80"},
        "2m",
        "2m30s",
        {"SamovarNoEngine": 'severity="critical"'},
    ),
    "one engine": Problem(
        {series("engine_state", 'engine="1"'): "0x4 1x80"},
        "3m",
        "3m30s",
        {"SamovarEngineFailed": 'severity="warning",engine="1",state="failed"'},
    ),
    "a crash": Problem(
        {series("engine_restarts"): "2x8 3x80"},
        "2m",
        "2m30s",
        {"SamovarEngineCrashed": 'severity="warning",engine="0"'},
    ),
    "crashes": Problem(
        {series("engine_restarts"): "2x8 3x4 4x4 5x4 7x80"},
        "2m",
        "6m",
        {
            "SamovarEngineCrashed": 'severity="warning",engine="0"',
            "SamovarEngineKeepsCrashing": 'severity="critical",engine="0"',
        },
    ),
    "failing answers": Problem(
        {series("requests", "engine_unavailable"): "0+1x80"},
        "5m",
        "5m30s",
        {"SamovarRequestsFail": 'severity="critical"'},
    ),
    "a full disk": Problem(
        {series("requests", "store_unavailable"): "0x8 1x80"},
        "2m",
        "2m30s",
        {"SamovarConversationsNotKept": 'severity="critical"'},
    ),
    "store away": Problem(
        {series("store_up"): "1x4 0x80"},
        "3m",
        "3m30s",
        {"SamovarStoreAway": 'severity="warning",backend="redis"'},
    ),
    "foreign blocks": Problem(
        {series("store_operations"): "0x8 1x80"},
        "2m",
        "2m30s",
        {"SamovarStoreCorrupt": 'severity="warning",backend="redis"'},
    ),
    "a long queue": Problem(
        {series("requests_waiting"): "20x4 60x80"}, "3m", "3m30s", {"SamovarQueueFilling": 'severity="warning"'}
    ),
    "a full queue": Problem(
        {series("requests", "queue_full"): "0x8 1x80"},
        "2m",
        "2m30s",
        {"SamovarTurnedAway": 'severity="warning",code="queue_full"'},
    ),
    "slow first tokens": Problem(
        {series("time_to_first_token", '"5.0"'): "0x80"}, "10m", "11m", {"SamovarSlowFirstToken": 'severity="warning"'}
    ),
    "slow tokens": Problem(
        {series("inter_token", '"0.5"'): "0x80"}, "10m", "11m", {"SamovarSlowTokens": 'severity="warning"'}
    ),
    "much memory": Problem(
        {series("engine_resident"): "6e8x4 2e9x80"},
        "6m",
        "6m30s",
        {"SamovarEngineMemory": 'severity="warning",engine="0"'},
    ),
}


def check(folder: Path, values: dict[str, str], expected: dict[str, dict[str, str]]) -> str:
    """Return promtool's output for a test that expects these alerts (value) at these times (key)."""
    tests: list[dict[str, Any]] = [
        {
            "interval": "15s",
            "input_series": [{"series": name, "values": changes} for name, changes in values.items()],
            "promql_expr_test": [
                {
                    "expr": FIRING,
                    "eval_time": moment,
                    "exp_samples": [
                        {"labels": f'ALERTS{{alertname="{name}",alertstate="firing",{WHERE},{labels}}}', "value": 1}
                        for name, labels in alerts.items()
                    ],
                }
                for moment, alerts in expected.items()
            ],
        }
    ]
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}))
    return promtool("test", "rules", str(path))


def test_no_alert_fires_without_a_problem(tmp_path: Path) -> None:
    assert check(tmp_path, HEALTHY, {"2m": {}, "10m": {}, "20m": {}}) == ""


@pytest.mark.parametrize("name", PROBLEMS)
def test_only_the_matching_alert_fires_when_a_problem_persists(tmp_path: Path, name: str) -> None:
    problem = PROBLEMS[name]
    values = HEALTHY | problem.changes
    assert check(tmp_path, values, {problem.silent: {}, problem.fires: problem.alerts}) == ""


def test_a_crash_alert_resolves_after_fifteen_minutes(tmp_path: Path) -> None:
    assert check(tmp_path, HEALTHY | PROBLEMS["a crash"].changes, {"18m": {}}) == ""


def test_every_alert_has_a_test_scenario() -> None:
    tried = {alert for problem in PROBLEMS.values() for alert in problem.alerts}
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_an_alert_that_fires_wrongly_would_be_seen(tmp_path: Path) -> None:
    assert "SamovarDown" in check(tmp_path, HEALTHY | PROBLEMS["down"].changes, {"5m": {}})
