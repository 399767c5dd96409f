"""Builds the JSON of the Grafana dashboard in any language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, text, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from grafana.board import ROWS, TITLE
from grafana.panels import Panel, Query, Row, Steps

Say = Callable[[str], str]

SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG: Final = "samovar"
HINT_HEIGHT, TILE_HEIGHT, PLOT_HEIGHT = 2, 4, 8
GREEN, YELLOW, RED = "green", "yellow", "red"


def dashboard(uid: str, say: Say) -> str:
    """Return the dashboard as JSON with a trailing newline. `say` translates its texts."""
    board = (
        build.Dashboard(say(TITLE))
        .uid(uid)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(_others(say))
    )
    for variable in _variables(say):
        board.with_variable(variable)
    for row in ROWS:
        board.with_row(build.Row(say(row.question)))
        board.with_panel(_hint(row, say))
        for panel in row.panels:
            board.with_panel(LOOKS[panel.look](panel, say))
    made = board.build()
    for number, item in enumerate(made.panels or (), 1):
        item.id_val = number
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(made) + "\n"


def _others(say: Say) -> build.DashboardLink:
    """Return the link to dashboards with the same tag: this one in the other language."""
    link = build.DashboardLink(say("The other language")).type(model.DashboardLinkType.DASHBOARDS)
    return link.tags([TAG]).keep_time(True).include_vars(True)


def _variables(say: Say) -> list[Builder[model.VariableModel]]:
    everything = model.VariableOption(text=[say("All")], value=["$__all"])

    def values(name: str, label: str, query: str) -> build.QueryVariable:
        variable = build.QueryVariable(name).label(say(label)).datasource(SOURCE).query(query).current(everything)
        return (
            variable.multi(True)
            .include_all(True)
            .all_value(".*")
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.NATURAL_ASC)
        )

    return [
        build.DatasourceVariable("datasource").label(say("Data source")).type("prometheus"),
        values("instance", "Gateway", "label_values(samovar_build_info, instance)"),
        values("engine", "Engine", 'label_values(samovar_engine_state{instance=~"$instance"}, engine)'),
    ]


def _hint(row: Row, say: Say) -> text.Panel:
    hint = text.Panel().mode(TextMode.MARKDOWN).content(say(row.hint)).transparent(True)
    return hint.span(24).height(HINT_HEIGHT)


def _target(query: Query, number: int, say: Say) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expression).legend_format(say(query.legend))
    return target.datasource(SOURCE).ref_id(chr(ord("A") + number)).format(PromQueryFormat.TIME_SERIES).range()


def _thresholds(steps: Steps | None) -> build.ThresholdsConfig:
    """Return the colours for a tile, from low to high values."""
    colours: dict[float | None, str] = {None: GREEN}  # a later colour replaces an earlier one at the same value
    if steps is not None and steps.falling:
        colours = {None: RED, steps.red: YELLOW, steps.yellow: GREEN}
    elif steps is not None:
        colours |= {steps.yellow: YELLOW, steps.red: RED}
    bounds = [model.Threshold(value, colour) for value, colour in colours.items()]
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(bounds)


def _tile(panel: Panel, say: Say) -> stat.Panel:
    tile = (
        stat.Panel()
        .title(say(panel.title))
        .description(say(panel.hint))
        .datasource(SOURCE)
        .unit(panel.unit)
        .thresholds(_thresholds(panel.steps))
        .color_mode(kinds.BigValueColorMode.BACKGROUND if panel.steps or panel.words else kinds.BigValueColorMode.NONE)
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("–")
        .span(panel.width)
        .height(TILE_HEIGHT)
    )
    if panel.words:
        words = {f"{value:g}": model.ValueMappingResult(say(word), colour) for value, word, colour in panel.words}
        tile.mappings([model.ValueMap(words)])
    for number, query in enumerate(panel.queries):
        tile.with_target(_target(query, number, say))
    return tile


def _lines(panel: Panel, say: Say) -> timeseries.Panel:
    plot = (
        timeseries.Panel()
        .title(say(panel.title))
        .description(say(panel.hint))
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .line_width(1)
        .fill_opacity(0)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
        .span(panel.width)
        .height(PLOT_HEIGHT)
    )
    for number, query in enumerate(panel.queries):
        plot.with_target(_target(query, number, say))
        if query.is_limit:
            plot.override_by_name(say(query.legend), _limit_style())
    return plot


def _limit_style() -> list[model.DynamicConfigValue]:
    """Return the style of a limit: dashed, and not stacked."""
    return [
        model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
        model.DynamicConfigValue("custom.fillOpacity", 0),
        model.DynamicConfigValue("custom.stacking", {"mode": "none"}),
        model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": RED}),
    ]


def _stack(panel: Panel, say: Say) -> timeseries.Panel:
    stacked = common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A")
    return _lines(panel, say).stacking(stacked).fill_opacity(40)


def _bars(panel: Panel, say: Say) -> timeseries.Panel:
    return _stack(panel, say).draw_style(kinds.GraphDrawStyle.BARS).fill_opacity(80)


def _states(panel: Panel, say: Say) -> statetimeline.Panel:
    states = (
        statetimeline.Panel()
        .title(say(panel.title))
        .description(say(panel.hint))
        .datasource(SOURCE)
        .show_value(kinds.VisibilityMode.NEVER)
        .line_width(0)
        .fill_opacity(70)
        .thresholds(_thresholds(Steps(1, 1)))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .no_value("–")
        .span(panel.width)
        .height(PLOT_HEIGHT)
    )
    for number, query in enumerate(panel.queries):
        states.with_target(_target(query, number, say))
    return states


LOOKS: Final[dict[str, Callable[[Panel, Say], Builder[model.Panel]]]] = {
    "tile": _tile,
    "lines": _lines,
    "stack": _stack,
    "bars": _bars,
    "states": _states,
}
