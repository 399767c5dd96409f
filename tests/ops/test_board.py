"""The Grafana dashboards: committed files are up to date, in two languages, and valid for Grafana's types."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.__main__ import BOARDS, FOLDER
from grafana.board import ROWS
from grafana.dashboard import dashboard
from grafana.words import CHINESE, chinese
from tests import ROOT
from tests.process.test_metrics import PROMISED
from tests.support.prometheus_server import promtool

RULES = ROOT / "grafana" / "rules" / "samovar.yml"
PAGE = ROOT / "docs" / "metrics.md"
ENDINGS = re.compile(r"_(bucket|sum|count)$")
QUESTIONS = ["OK", "waiting", "fast", "cache save", "engines use", "learned", "failed"]


def board(uid: str) -> dict[str, Any]:
    """Return a committed dashboard."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"{uid}.json").read_text("utf-8"))
    return loaded


def expressions(uid: str) -> Iterator[str]:
    """Yield the queries of a dashboard."""
    for panel in board(uid)["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def rules() -> list[dict[str, Any]]:
    """Return all recording and alert rules."""
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def metrics(expression: str) -> set[str]:
    """The metrics of docs/api.md in an expression, without their prefix."""
    names = re.findall(r"(?<![\w:])samovar_(\w+)\{?", expression)
    return {name if name in PROMISED else ENDINGS.sub("", name) for name in names}


@pytest.mark.parametrize("uid", BOARDS)
def test_the_committed_dashboard_is_up_to_date(uid: str) -> None:
    made = dashboard(uid, BOARDS[uid])
    assert (FOLDER / f"{uid}.json").read_text("utf-8") == made, "the board changed: run `make board`"


@pytest.mark.parametrize("uid", BOARDS)
def test_the_dashboard_round_trips_through_grafanas_types(uid: str) -> None:
    register_default_plugins()
    read = Dashboard.from_json(board(uid))
    assert json.loads(JSONEncoder().encode(read)) == board(uid)


def test_the_rows_ask_the_seven_questions_in_their_order_and_each_has_a_hint() -> None:
    panels = board("samovar")["panels"]
    titles = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert [word in title for word, title in zip(QUESTIONS, titles, strict=True)] == [True] * len(QUESTIONS)
    for row, hint in itertools.pairwise(panels):
        if row["type"] == "row":
            assert hint["type"] == "text"
            assert "\n" not in hint["options"]["content"]
    assert [panel["title"] for panel in panels if panel.get("targets") and not panel.get("description")] == []


def test_panels_fill_their_rows_and_never_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board("samovar")["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_queries_are_the_same_in_every_language() -> None:
    assert list(expressions("samovar")) == list(expressions("samovar-zh"))


def test_every_text_of_the_dashboard_has_a_chinese_translation_and_none_is_unused() -> None:
    used = {"Samovar", "Data source", "Gateway", "Engine", "All", "The other language"}
    for row in ROWS:
        used |= {row.question, row.hint}
        for panel in row.panels:
            used |= {panel.title, panel.hint, *(word for _, word, _ in panel.words)}
            used |= {query.legend for query in panel.queries}
    for words in used:
        chinese(words)
    assert set(CHINESE) <= used


def test_all_that_boards_and_rules_ask_for_is_promised_by_the_api_reference() -> None:
    asked = set().union(*map(metrics, expressions("samovar")), *(metrics(rule["expr"]) for rule in rules()))
    assert asked <= set(PROMISED)


def test_all_that_the_api_reference_promises_is_on_the_board() -> None:
    assert set(PROMISED) - set().union(*map(metrics, expressions("samovar"))) == set()


def test_every_query_respects_the_selected_instance_and_engine() -> None:
    variables = [variable["name"] for variable in board("samovar")["templating"]["list"]]
    assert variables == ["datasource", "instance", "engine"]
    for expression in expressions("samovar"):
        for name, selector in re.findall(r"samovar_(\w+)(\{[^}]*\}|)", expression):
            assert 'instance=~"$instance"' in selector, expression
            assert ('engine=~"$engine"' in selector) == ("engine" in PROMISED.get(name, ("", set()))[1]), expression


def test_thresholds_are_the_gateways_own_limits() -> None:
    limits = {name for expression in expressions("samovar") for name in re.findall(r'name="(\w+)"', expression)}
    assert limits == {"queue_limit", "queue_timeout", "running", "engine_memory", "cores"}


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    assert promtool("check", "rules", str(RULES)) == ""


def test_every_alert_has_severity_meaning_and_remedy_in_two_languages() -> None:
    page = PAGE.read_text("utf-8")
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert set(rule["annotations"]) == {"summary", "description", "zh"}
            assert "{{ $labels.instance }}" in rule["annotations"]["zh"]
            assert f"### {rule['alert']}\n" in page


def test_every_metric_is_documented() -> None:
    page = PAGE.read_text("utf-8")
    assert [name for name in PROMISED if f"`{name}`" not in page] == []


def test_every_row_of_the_dashboard_is_documented() -> None:
    page = PAGE.read_text("utf-8")
    assert [row.question for row in ROWS if f"| {row.question} |" not in page] == []


def test_grafana_is_provisioned_with_the_default_data_source_and_both_dashboards() -> None:
    folder = ROOT / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "samovar.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    [provider] = yaml.safe_load((folder / "dashboards" / "samovar.yml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")
    assert {path.stem for path in FOLDER.glob("*.json")} == set(BOARDS)
    assert len({board(uid)["uid"] for uid in BOARDS}) == len(BOARDS)
