"""What the four dashboards are made of: selectors, query helpers and one function per kind of panel.

A panel function takes the question as its title, and the explanation a reader needs as its description. Queries are
(expression, legend) pairs; the legend is a Grafana legend such as ``{{model}}``.
"""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, piechart, prometheus, stat
from grafana_foundation_sdk.builders import statetimeline, table, timeseries
from grafana_foundation_sdk.models import common as cm
from grafana_foundation_sdk.models import dashboard as dm
from grafana_foundation_sdk.models import heatmap as hm
from grafana_foundation_sdk.models import piechart as pm
from grafana_foundation_sdk.models import prometheus as prm

Query = tuple[str, str]

# --- queries -------------------------------------------------------------------------------------------------------

MODEL = 'model=~"$model"'
PROVIDER = 'provider=~"$provider"'
KEY = 'api_key_comment=~"$key"'


def sel(metric: str, *matchers: str) -> str:
    """A selector of `metric`, always restricted to the chosen instances.

    All instances are those of every program, Prometheus too, where the metric is not the gateway's alone: then the job
    is named, as in the rules.
    """
    job = () if metric.startswith("nexusgate_") else ('job="nexusgate"',)
    return metric + "{" + ",".join(('instance=~"$instance"', *job, *matchers)) + "}"


def rate(metric: str, *matchers: str) -> str:
    """Per second, over the window that suits the panel's resolution."""
    return f"rate({sel(metric, *matchers)}[$__rate_interval])"


def growth(metric: str, *matchers: str, offset: str = "") -> str:
    """How much a counter grew in the dashboard's time range."""
    return f"increase({sel(metric, *matchers)}[$__range]{offset})"


def total(expr: str, *by: str) -> str:
    """A sum, by labels or over everything."""
    return f"sum by ({', '.join(by)}) ({expr})" if by else f"sum({expr})"


def or_zero(expr: str) -> str:
    """A sum without labels, or 0 where nothing has been counted yet."""
    return f"({expr} or vector(0))"


def ratio(part: str, whole: str) -> str:
    """`part / whole`, and nothing at all where the whole is zero (not 0, not NaN, not an invented denominator)."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, metric: str, *matchers: str, by: Sequence[str] = (), window: str = "$__rate_interval") -> str:
    """A quantile of a histogram; nothing where it is idle."""
    labels = ", ".join((*by, "le"))
    return f"histogram_quantile({q}, sum by ({labels}) (rate({sel(metric + '_bucket', *matchers)}[{window}]))) >= 0"


def quantiles(metric: str, *matchers: str, by: str, qs: Sequence[float] = (0.5, 0.75, 0.9, 0.95, 0.99)) -> list[Query]:
    """One query per quantile, labelled `p95 gpt-4o`."""
    return [(quantile(q, metric, *matchers, by=[by]), f"p{q * 100:.0f} {{{{{by}}}}}") for q in qs]


# --- parts of panels -----------------------------------------------------------------------------------------------

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"
STATUS_COLORS = {"completed": GREEN, "failed": RED, "aborted": ORANGE, "cache_hit": BLUE}
OUTCOME_COLORS = {
    "ok": GREEN, "connect": "dark-red", "timeout": RED, "http_5xx": "light-red", "protocol": "purple",
    "stream_cut": "dark-orange", "http_429": YELLOW, "http_4xx": BLUE, "cancelled": "gray",
}  # fmt: skip

SOURCE = dm.DataSourceRef(type_val="prometheus", uid="${datasource}")


def steps(*pairs: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Thresholds from (lower bound, color); the first bound is None."""
    return (
        dashboard.ThresholdsConfig()
        .mode(dm.ThresholdsMode.ABSOLUTE)
        .steps([dm.Threshold(value=value, color=color) for value, color in pairs])
    )


HIGH_IS_GOOD = steps((None, RED), (0.95, YELLOW), (0.99, GREEN))
LOW_IS_GOOD = steps((None, GREEN), (0.01, YELLOW), (0.05, RED))
ZERO_IS_GOOD = steps((None, GREEN), (0.000001, RED))
NEUTRAL = steps((None, BLUE))


def _targets(panel, queries: Sequence[Query], *, instant: bool, fmt: prm.PromQueryFormat) -> None:
    for number, (expr, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number)).format(fmt)
        panel.with_target(query.instant() if instant else query.range())


def _unit(unit: str, decimals: int | None) -> str:
    """Whole numbers in full: `short` would write 9909 as 10 K."""
    return "locale" if unit == "short" and decimals == 0 else unit


def _base(panel, title: str, description: str, unit: str, width: int, height: int, decimals: int | None):
    unit = _unit(unit, decimals)
    panel.title(title).description(description).unit(unit).span(width).height(height).datasource(SOURCE)
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def _reduce() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


def _color(panel, colors: dict[str, str]) -> None:
    for name, color in colors.items():
        value = {"mode": "fixed", "fixedColor": color}
        panel.override_by_name(name, [dm.DynamicConfigValue(id_val="color", value=value)])


def go(uid: str, title: str, label: str = "", variable: str = "") -> dashboard.DashboardLink:
    """A link to another dashboard that keeps the time range, and takes a label of the series along as a variable."""
    carried = f"&var-{variable}=${{__field.labels.{label}}}" if label else ""
    link = dashboard.DashboardLink(title).type(dm.DashboardLinkType.LINK)
    return link.url(f"/d/{uid}?${{__url_time_range}}{carried}")


def _link(panel, link: dashboard.DashboardLink | None) -> None:
    if link is None:
        return
    if "__field" in (link.build().url or ""):
        # Follows from the series that was clicked.
        panel.data_links([link])
    else:
        panel.links([link])


# --- panels --------------------------------------------------------------------------------------------------------


def number(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "short",
    decimals: int | None = None,
    thresholds: dashboard.ThresholdsConfig = NEUTRAL,
    width: int = 4,
    spark: bool = False,
    texts: dict[str, str] | None = None,
    legend: str = "",
    show_name: bool = False,
    bounds: tuple[float, float] | None = None,
    link: dashboard.DashboardLink | None = None,
):
    """One big number. `spark`: with its history behind it. `texts`: words for certain values."""
    panel = _base(stat.Panel(), title, description, unit, width, 4, decimals)
    panel.thresholds(thresholds).color_mode(cm.BigValueColorMode.VALUE)
    panel.color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.THRESHOLDS))
    panel.graph_mode(cm.BigValueGraphMode.AREA if spark else cm.BigValueGraphMode.NONE)
    panel.text_mode(cm.BigValueTextMode.NAME if show_name else cm.BigValueTextMode.VALUE)
    panel.reduce_options(_reduce()).no_value("–")
    if bounds:
        panel.min(bounds[0]).max(bounds[1])
    if texts:
        options = {value: dm.ValueMappingResult(text=text) for value, text in texts.items()}
        panel.mappings([dm.ValueMap(options=options)])
    _link(panel, link)
    _targets(panel, [(expr, legend)], instant=not spark, fmt=prm.PromQueryFormat.TIME_SERIES)
    return panel


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    percent: bool = False,
    bars: bool = False,
    log: bool = False,
    bounds: tuple[float | None, float | None] = (0, None),
    colors: dict[str, str] | None = None,
    dashed: str = "",
    thresholds: dashboard.ThresholdsConfig | None = None,
    calcs: Sequence[str] = ("mean", "max"),
    link: dashboard.DashboardLink | None = None,
):
    """A time series. `stacked`, `percent` (stacked to 100 %), `bars`, `log`; `dashed`: a regex of series drawn so."""
    panel = _base(timeseries.Panel(), title, description, unit, width, height, None)
    panel.line_width(1).fill_opacity(70 if bars else 25 if stacked else 8).show_points(cm.VisibilityMode.NEVER)
    panel.draw_style(cm.GraphDrawStyle.BARS if bars else cm.GraphDrawStyle.LINE)
    panel.color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    if stacked or percent:
        mode = cm.StackingMode.PERCENT if percent else cm.StackingMode.NORMAL
        panel.stacking(common.StackingConfig().mode(mode).group("A"))
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(cm.ScaleDistribution.LOG).log(10))
    else:
        if bounds[0] is not None:
            panel.min(bounds[0])
        if bounds[1] is not None:
            panel.max(bounds[1])
    if thresholds is not None:
        panel.thresholds(thresholds)
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(cm.GraphThresholdsStyleMode.LINE))
    legend = common.VizLegendOptions().show_legend(True).placement(cm.LegendPlacement.BOTTOM)
    panel.legend(legend.display_mode(cm.LegendDisplayMode.TABLE).calcs(list(calcs)))
    panel.tooltip(common.VizTooltipOptions().mode(cm.TooltipDisplayMode.MULTI).sort(cm.SortOrder.DESCENDING))
    _color(panel, colors or {})
    if dashed:
        style = {"fill": "dash", "dash": [8, 6]}
        panel.override_by_regexp(
            dashed,
            [
                dm.DynamicConfigValue(id_val="custom.lineStyle", value=style),
                dm.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
            ],
        )
    _link(panel, link)
    _targets(panel, queries, instant=False, fmt=prm.PromQueryFormat.TIME_SERIES)
    return panel


def shares(
    title: str,
    description: str,
    expr: str,
    legend: str,
    *,
    unit: str = "short",
    width: int = 8,
    height: int = 7,
    colors: dict[str, str] | None = None,
    link: dashboard.DashboardLink | None = None,
):
    """A ring of shares of the dashboard's time range."""
    panel = _base(piechart.Panel(), title, description, unit, width, height, None)
    panel.pie_type(pm.PieChartType.DONUT).display_labels([pm.PieChartLabels.PERCENT]).reduce_options(_reduce())
    panel.color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    values = [pm.PieChartLegendValues.VALUE, pm.PieChartLegendValues.PERCENT]
    panel.legend(
        piechart.PieChartLegendOptions()
        .show_legend(True)
        .display_mode(cm.LegendDisplayMode.TABLE)
        .placement(cm.LegendPlacement.RIGHT)
        .values(values)
    )
    panel.tooltip(common.VizTooltipOptions().mode(cm.TooltipDisplayMode.SINGLE).sort(cm.SortOrder.NONE))
    _color(panel, colors or {})
    _link(panel, link)
    _targets(panel, [(expr, legend)], instant=True, fmt=prm.PromQueryFormat.TIME_SERIES)
    return panel


def ranking(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    width: int = 6,
    height: int = 8,
    decimals: int | None = None,
    thresholds: dashboard.ThresholdsConfig = NEUTRAL,
    bounds: tuple[float | None, float | None] = (0, None),
    link: dashboard.DashboardLink | None = None,
):
    """Horizontal bars, one for each series."""
    panel = _base(bargauge.Panel(), title, description, unit, width, height, decimals)
    panel.thresholds(thresholds).reduce_options(_reduce()).orientation(cm.VizOrientation.HORIZONTAL)
    panel.color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.THRESHOLDS))
    panel.display_mode(cm.BarGaugeDisplayMode.GRADIENT).show_unfilled(True).value_mode(cm.BarGaugeValueMode.COLOR)
    if bounds[0] is not None:
        panel.min(bounds[0])
    if bounds[1] is not None:
        panel.max(bounds[1])
    _link(panel, link)
    _targets(panel, queries, instant=True, fmt=prm.PromQueryFormat.TIME_SERIES)
    return panel


def heat(title: str, description: str, metric: str, *matchers: str, unit: str = "s", width: int = 12, height: int = 8):
    """The buckets of a histogram over time."""
    panel = _base(heatmap.Panel(), title, description, unit, width, height, None)
    panel.calculate(False).show_value(cm.VisibilityMode.NEVER).cell_gap(1)
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(cm.AxisPlacement.LEFT))
    scheme = heatmap.HeatmapColorOptions().mode(hm.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel.color(scheme.scale(hm.HeatmapColorScale.EXPONENTIAL).exponent(0.5).fill("dark-orange"))
    expr = f"sum by (le) (increase({sel(metric + '_bucket', *matchers)}[$__rate_interval]))"
    _targets(panel, [(expr, "{{le}}")], instant=False, fmt=prm.PromQueryFormat.HEATMAP)
    return panel


def states(
    title: str, description: str, queries: Sequence[Query], texts: dict[str, tuple[str, str]], *, width=12, height=6
):
    """A band for each series that changes color with its value; `texts` maps values to (text, color)."""
    panel = _base(statetimeline.Panel(), title, description, "short", width, height, None)
    options = {value: dm.ValueMappingResult(text=text, color=color) for value, (text, color) in texts.items()}
    panel.mappings([dm.ValueMap(options=options)]).show_value(cm.VisibilityMode.NEVER).row_height(0.8)
    panel.fill_opacity(80).line_width(0).merge_values(True)
    panel.color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.THRESHOLDS))
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(cm.LegendDisplayMode.LIST)
        .placement(cm.LegendPlacement.BOTTOM)
    )
    _targets(panel, queries, instant=False, fmt=prm.PromQueryFormat.TIME_SERIES)
    return panel


class Column:
    """A column of a table: what is queried, and how it is shown."""

    def __init__(
        self,
        name: str,
        expr: str,
        unit: str = "short",
        decimals: int = 0,
        thresholds: Sequence[tuple[float | None, str]] = (),
    ):
        self.name, self.expr, self.unit, self.decimals, self.thresholds = name, expr, unit, decimals, thresholds


def grid(
    title: str,
    description: str,
    labels: dict[str, str],
    columns: Sequence[Column],
    *,
    sort: str,
    totals: Sequence[str] = (),
    width: int = 24,
    height: int = 8,
):
    """A table of instant queries that share `labels` (label → heading). Rows are merged on *all* the labels."""
    panel = _base(table.Panel(), title, description, "short", width, height, None)
    panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)]).cell_height(cm.TableCellHeight.SM)
    if totals:
        panel.footer(common.TableFooterOptions().show(True).reducer(["sum"]).fields(list(totals)))
    renamed = dict(labels)
    for index, column in enumerate(columns):
        # What Grafana calls the values of a query; where there is only one, it leaves the letter out.
        renamed["Value" if len(columns) == 1 else f"Value #{chr(ord('A') + index)}"] = column.name
        values = [
            dm.DynamicConfigValue(id_val="unit", value=_unit(column.unit, column.decimals)),
            dm.DynamicConfigValue(id_val="decimals", value=column.decimals),
        ]
        if column.thresholds:
            levels = [{"value": value, "color": color} for value, color in column.thresholds]
            values.append(dm.DynamicConfigValue(id_val="thresholds", value={"mode": "absolute", "steps": levels}))
            values.append(dm.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
        panel.override_by_name(column.name, values)
    order = {name: position for position, name in enumerate(renamed)}
    panel.with_transformation(dm.DataTransformerConfig(id_val="merge", options={}))
    organized = {"excludeByName": {"Time": True}, "renameByName": renamed, "indexByName": order}
    panel.with_transformation(dm.DataTransformerConfig(id_val="organize", options=organized))
    queries = [(column.expr, "") for column in columns]
    _targets(panel, queries, instant=True, fmt=prm.PromQueryFormat.TABLE)
    return panel


# --- dashboards ----------------------------------------------------------------------------------------------------

UIDS = {
    "Overview": "nexusgate-overview",
    "Providers": "nexusgate-providers",
    "Keys and cost": "nexusgate-keys-and-cost",
    "Gateway internals": "nexusgate-internals",
}


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .multi(True)
        .include_all(True)
        # Matches series without the label too, and keeps the queries short however many keys there are.
        .all_value(".*")
        .current(dm.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .refresh(dm.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dm.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
    )


def board(name: str, description: str, rows: Sequence[tuple[str, Sequence]]) -> dashboard.Dashboard:
    """A dashboard of titled rows of panels, with the common variables and links to the other three."""
    result = (
        dashboard.Dashboard(f"nexusgate / {name}")
        .uid(UIDS[name])
        .description(description)
        .tags(["nexusgate", "llm"])
        .editable()
        .tooltip(dm.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr('ALERTS{alertname=~"NexusGate.+",alertstate="firing"}')
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Data source")
            .type("prometheus")
            .current(dm.VariableOption(selected=True, text="Prometheus", value="nexusgate-prometheus"))
        )
        .with_variable(_variable("instance", "Instance", "label_values(nexusgate_info, instance)"))
        .with_variable(
            _variable("model", "Model", 'label_values({__name__=~"nexusgate_(completions|embeddings)_total"}, model)')
        )
        .with_variable(_variable("provider", "Provider", "label_values(nexusgate_provider_up, provider)"))
        .with_variable(
            _variable(
                "key", "Key", 'label_values({__name__=~"nexusgate_(completions|embeddings)_total"}, api_key_comment)'
            )
        )
    )
    for title, uid in UIDS.items():
        if title != name:
            result.link(
                dashboard.DashboardLink(title)
                .type(dm.DashboardLinkType.LINK)
                .url(f"/d/{uid}")
                .icon("dashboard")
                .include_vars(True)
                .keep_time(True)
            )
    ident = 0
    for title, panels in rows:
        ident += 1
        result.with_row(dashboard.Row(title).id(ident))
        for panel in panels:
            ident += 1
            result.with_panel(panel.id(ident))
    return result
