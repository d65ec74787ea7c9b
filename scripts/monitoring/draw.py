"""Draws a dashboard with matplotlib: panels at their place on the grid, in the colors, units and order of their JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import dates, ticker  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import LinearSegmentedColormap  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

import dashboards  # noqa: E402
import grafana  # noqa: E402
import stack  # noqa: E402

Series = list[dict[str, Any]]
Answers = Sequence[tuple[dashboards.Target, Series]]

# Pixels: of a grid unit, of the gap between panels, of a page.
UNIT_W, UNIT_H, GAP, MARGIN, HEAD, DPI = 58, 37, 7, 12, 44, 100
BACK, CARD, EDGE, TEXT, DIM, LINE = "#111217", "#181b1f", "#2a2d33", "#d8d9da", "#8e8f99", "#2f333b"
COLORS = {
    "green": "#73bf69", "dark-green": "#37872d", "light-green": "#96d98d", "yellow": "#fade2a", "orange": "#ff9830",
    "dark-orange": "#fa6400", "red": "#f2495c", "dark-red": "#c4162a", "light-red": "#ff7383", "blue": "#5794f2",
    "purple": "#b877d9", "gray": "#8e8f99", "transparent": CARD,
}  # fmt: skip
PALETTE = (
    "#73bf69", "#fade2a", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffcb7d", "#37872d", "#ff7383",
    "#e0b400", "#1f60c4", "#ca95e5", "#fa6400", "#96d98d",
)  # fmt: skip

#: Grafana's "Oranges" on a dark ground.
EMBERS = LinearSegmentedColormap.from_list("embers", ["#33261c", "#8a4a12", "#ff9830", "#ffe3b8"])

plt.rcParams.update({
    "font.family": "DejaVu Sans", "font.size": 7.5, "text.color": TEXT, "axes.edgecolor": EDGE, "axes.facecolor": CARD,
    "xtick.color": DIM, "ytick.color": DIM, "axes.labelcolor": DIM, "figure.facecolor": BACK, "timezone": "UTC",
})  # fmt: skip


# --- words and numbers ---------------------------------------------------------------------------------------------


def significant(value: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    factor, suffix = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{significant(value / factor)}{suffix}"


def words(value: float, unit: str, decimals: int | None = None) -> str:
    """A value as Grafana writes it."""
    if math.isnan(value):
        return "–"
    if unit in ("percentunit", "percent"):
        percent = value * 100 if unit == "percentunit" else value
        return f"{percent:,.{decimals}f} %" if decimals is not None else f"{significant(percent)} %"
    if unit == "currencyUSD":
        return f"${value:,.{decimals}f}" if decimals is not None else f"${significant(value)}"
    if unit == "s":
        return scaled(value, ((86400, " d"), (3600, " h"), (60, " min"), (1, " s"), (1e-3, " ms"), (1e-6, " µs"))) if value else "0 s"
    if unit == "bytes":
        return scaled(value, ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")))
    suffix = {"reqps": " req/s", "cps": " /s", "wps": " rows/s"}.get(unit, "")
    if unit == "locale":
        return f"{value:,.{decimals or 0}f}"
    if decimals is not None and abs(value) < 1e3:
        return f"{value:.{decimals}f}{suffix}"
    if abs(value) >= 1e3:
        return scaled(value, ((1e9, " G"), (1e6, " M"), (1e3, " K"))) + suffix
    return f"{significant(value)}{suffix}"


def legend_of(target: dashboards.Target, one: dict[str, Any]) -> str:
    if not target.legend:
        return ", ".join(f"{name}={value}" for name, value in sorted(one["metric"].items()) if name != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: one["metric"].get(match[1], ""), target.legend).strip()


def color_at(value: float, steps: Sequence[dict[str, Any]]) -> str:
    """The color of a value among thresholds."""
    name = "green"
    for step in steps:
        if step["value"] is None or value >= step["value"]:
            name = step["color"]
    return COLORS.get(name, name)


def points(one: dict[str, Any], step: float = math.inf) -> tuple[list[datetime], list[float]]:
    """Times and values; NaN where more than a step is missing, so that no line crosses the gap."""
    moments, values = [], []
    for moment, value in one["values"]:
        moment = datetime.fromtimestamp(float(moment), UTC)
        if moments and (moment - moments[-1]).total_seconds() > 1.5 * step:
            moments.append(moments[-1] + (moment - moments[-1]) / 2)
            values.append(math.nan)
        moments.append(moment)
        values.append(float(value))
    return moments, values


class Style:
    """Colors and dashes of the series of a panel, by name."""

    def __init__(self, panel: dashboards.Panel):
        self.fixed: dict[str, str] = {}
        self.dashed: list[str] = []
        for override in panel.raw.get("fieldConfig", {}).get("overrides", []):
            for change in override["properties"]:
                if change["id"] == "color":
                    self.fixed[override["matcher"]["options"]] = COLORS.get(change["value"]["fixedColor"], TEXT)
                if change["id"] == "custom.lineStyle":
                    self.dashed.append(override["matcher"]["options"])
        self.next = 0

    def color(self, name: str) -> str:
        if name not in self.fixed:
            self.fixed[name] = PALETTE[self.next % len(PALETTE)]
            self.next += 1
        return self.fixed[name]

    def dash(self, name: str) -> str:
        return "--" if any(re.fullmatch(pattern, name) for pattern in self.dashed) else "-"


# --- a page --------------------------------------------------------------------------------------------------------


class Page:
    """Some rows of a dashboard."""

    def __init__(self, title: str, raws: Sequence[dict[str, Any]], window: grafana.Window):
        self.raws, self.window = raws, window
        self.top = min(raw["gridPos"]["y"] for raw in raws)
        bottom = max(raw["gridPos"]["y"] + raw["gridPos"]["h"] for raw in raws)
        self.width = 24 * UNIT_W + 2 * MARGIN
        self.height = (bottom - self.top) * UNIT_H + HEAD + MARGIN
        self.figure = plt.figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        start, end = (datetime.fromtimestamp(moment, UTC) for moment in (window.start, window.end))
        self.text(MARGIN + 4, 16, title, size=12, weight="bold")
        shown = f"{start:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"
        self.text(self.width - MARGIN - 4, 18, shown, size=8, color=DIM, ha="right")
        for raw in raws:
            if raw["type"] == "row":
                x, y, _, _ = self.place(raw["gridPos"])
                self.text(x + 4, y + UNIT_H / 2 - 7, f"▾  {raw['title']}", size=9.5, weight="bold")

    def place(self, grid: dict[str, int]) -> tuple[float, float, float, float]:
        """x, y, width and height in pixels from the top left."""
        return (
            MARGIN + grid["x"] * UNIT_W,
            HEAD + (grid["y"] - self.top) * UNIT_H,
            grid["w"] * UNIT_W - GAP,
            grid["h"] * UNIT_H - GAP,
        )

    def text(self, x: float, y: float, words: str, **options: Any) -> None:
        options = {"va": "top", "color": TEXT, **options}
        self.figure.text(x / self.width, 1 - y / self.height, words, **options)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )

    def panel(self, panel: dashboards.Panel, answers: Answers) -> None:
        x, y, width, height = self.place(panel.raw["gridPos"])
        card = Rectangle(
            (x / self.width, 1 - (y + height) / self.height), width / self.width, height / self.height,
            facecolor=CARD, edgecolor=EDGE, linewidth=0.8, transform=self.figure.transFigure, zorder=-1,
        )  # fmt: skip
        self.figure.add_artist(card)
        self.text(x + 9, y + 8, panel.title, size=8.5, weight="bold")
        draws = {
            "stat": number, "timeseries": lines, "piechart": ring, "bargauge": bars, "heatmap": heat, "table": grid,
            "state-timeline": states,
        }  # fmt: skip
        draws[panel.type](self, panel, answers, x, y + 24, width, height - 24)

    def save(self, path: Path) -> None:
        # A palette makes the files a third of the size, with no visible loss.
        self.figure.canvas.draw()
        from PIL import Image

        picture = Image.frombuffer("RGBA", self.figure.canvas.get_width_height(), self.figure.canvas.buffer_rgba())
        picture.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
        plt.close(self.figure)


def defaults(panel: dashboards.Panel) -> dict[str, Any]:
    return panel.raw["fieldConfig"]["defaults"]


def texts(panel: dashboards.Panel) -> dict[str, dict[str, Any]]:
    return {key: text for mapping in defaults(panel).get("mappings", []) for key, text in mapping["options"].items()}


# --- panels --------------------------------------------------------------------------------------------------------


def number(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    target, series = answers[0]
    if not series:
        value, color, written = math.nan, DIM, "–"
    else:
        value = float(series[0]["value"][1] if target.instant else series[0]["values"][-1][1])
        color = color_at(value, defaults(panel).get("thresholds", {}).get("steps", []))
        written = words(value, panel.unit, defaults(panel).get("decimals"))
        if panel.raw["options"]["textMode"] == "name":
            written = legend_of(target, series[0])
        written = texts(panel).get(f"{value:g}", {}).get("text", written)
    if series and not target.instant:
        axes = page.axes(x + 1, y + height * 0.55, width - 2, height * 0.45 - 1)
        moments, values = points(series[0])
        axes.fill_between(moments, values, color=color, alpha=0.18, linewidth=0)
        axes.plot(moments, values, color=color, linewidth=1)
        axes.set_axis_off()
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
    size = min(22, 24 * 8 / max(len(written), 6))
    page.text(x + width / 2, y + height / 2 - 6, written, size=size, weight="bold", color=color, ha="center", va="center")


def lines(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    custom, style = defaults(panel).get("custom", {}), Style(panel)
    mode = custom.get("stacking", {}).get("mode", "none")
    step = page.window.step if mode == "none" else math.inf
    named = [(legend_of(target, one), *points(one, step)) for target, series in answers for one in series]
    per_row = 1 if width < 300 else 2 if width < 560 else 3
    shown = named[: per_row * (4 if width > 560 else 5)]
    legend_rows = math.ceil(len(shown) / per_row)
    legend_height = legend_rows * 13 + 8
    axes = page.axes(x + 52, y + 4, width - 64, height - legend_height - 26)
    if mode != "none":
        stacked(axes, named, style, share=mode == "percent", bars=custom.get("drawStyle") == "bars")
    else:
        for name, moments, values in named:
            axes.plot(moments, values, style.dash(name), color=style.color(name), linewidth=1)
            if len(named) <= 4 and custom.get("fillOpacity") and style.dash(name) == "-":
                axes.fill_between(moments, values, color=style.color(name), alpha=0.08, linewidth=0)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        top = defaults(panel).get("max")
        if "min" in defaults(panel):
            axes.set_ylim(bottom=defaults(panel)["min"])
        if top is not None and mode != "percent":
            # A fraction of a percent is a line on the floor: the axis is as tall as the data needs, and no taller than
            # the scale.
            highest = max((value for _, _, values in named for value in values if not math.isnan(value)), default=top)
            axes.set_ylim(top=min(top, max(highest * 1.15, top / 100)))
    if custom.get("thresholdsStyle", {}).get("mode") == "line":
        for step in defaults(panel)["thresholds"]["steps"]:
            if step["value"] is not None:
                axes.axhline(step["value"], color=COLORS.get(step["color"], TEXT), linewidth=0.9, linestyle=(0, (4, 3)))
    unit = "percentunit" if mode == "percent" else panel.unit
    timeline(page, axes, unit)
    column = (width - 20) / per_row
    for index, (name, _, values) in enumerate(shown):
        legend_x = x + 12 + column * (index % per_row)
        legend_y = y + height - legend_height + 13 * (index // per_row)
        known = [value for value in values if not math.isnan(value)]
        mean = words(sum(known) / len(known), panel.unit) if known else "–"
        page.text(legend_x, legend_y + 1, "▬", size=6.5, color=style.color(name))
        room = int((column - 34) / 5.6) - len(mean) - 1
        label = name if len(name) <= room else name[: room - 1] + "…"
        page.text(legend_x + 13, legend_y, f"{label}", size=7)
        page.text(legend_x + column - 14, legend_y, mean, size=7, color=DIM, ha="right")
    if len(named) > len(shown):
        page.text(x + width - 9, y - 15, f"{len(named) - len(shown)} more in the legend", size=6.5, color=DIM, ha="right")


def stacked(axes: Axes, named: list, style: Style, *, share: bool, bars: bool) -> None:
    moments = sorted({moment for _, at, _ in named for moment in at})
    table = [dict(zip(at, values, strict=True)) for _, at, values in named]
    columns = [[0 if math.isnan(values.get(moment, 0)) else max(0, values.get(moment, 0)) for moment in moments] for values in table]
    if share:
        sums = [sum(column) or 1 for column in zip(*columns, strict=True)]
        columns = [[value / whole for value, whole in zip(column, sums, strict=True)] for column in columns]
    colors = [style.color(name) for name, _, _ in named]
    axes.stackplot(moments, columns, colors=colors, alpha=0.75 if bars else 0.45, linewidth=0)
    if not bars:
        floor = [0.0] * len(moments)
        for column, color in zip(columns, colors, strict=True):
            floor = [below + value for below, value in zip(floor, column, strict=True)]
            axes.plot(moments, floor, color=color, linewidth=0.9)
    axes.set_ylim(0, 1 if share else None)


def timeline(page: Page, axes: Axes, unit: str) -> None:
    start, end = (datetime.fromtimestamp(moment, UTC) for moment in (page.window.start, page.window.end))
    axes.set_xlim(start, end)
    minutes = (page.window.end - page.window.start) / 60
    every = next((step for step in (1, 2, 5, 10, 15, 30, 60) if minutes / step <= 7), 120)
    axes.xaxis.set_major_locator(dates.MinuteLocator(byminute=range(0, 60, every)) if every < 60 else dates.HourLocator())
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    if axes.get_yscale() == "log":
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: words(value, unit) if value else "0"))
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=6.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def ring(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    style = Style(panel)
    named = sorted(
        ((legend_of(target, one), float(one["value"][1])) for target, series in answers for one in series),
        key=lambda pair: -pair[1],
    )
    whole = sum(value for _, value in named) or 1
    size = min(height - 14, width * 0.46)
    axes = page.axes(x + 8, y + (height - size) / 2, size, size)
    slices = [(name, value) for name, value in named if value > 0]
    axes.pie(
        [value for _, value in slices], colors=[style.color(name) for name, _ in slices], startangle=90,
        counterclock=False, wedgeprops={"width": 0.38, "edgecolor": CARD, "linewidth": 1},
    )  # fmt: skip
    for index, (name, value) in enumerate(named[:9]):
        line = y + height / 2 - 7 * min(len(named), 9) + 15 * index
        page.text(x + size + 22, line + 1, "▬", size=6.5, color=style.color(name))
        written = f"{words(value, panel.unit)}  {100 * value / whole:.0f} %"
        room = int((width - size - 50) / 5.4) - len(written)
        page.text(x + size + 35, line, name if len(name) <= room else name[: max(room - 1, 3)] + "…", size=7)
        page.text(x + width - 10, line, written, size=7, color=DIM, ha="right")


def bars(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    named = [(legend_of(target, one), float(one["value"][1])) for target, series in answers for one in series][:10]
    top = panel.maximum or max((value for _, value in named), default=1) or 1
    room = (height - 12) / max(len(named), 1)
    thick = min(room - 16, 24)
    for index, (name, value) in enumerate(named):
        line = y + 6 + room * index + max(0, (room - thick - 16) / 2)
        color = color_at(value, defaults(panel).get("thresholds", {}).get("steps", []))
        page.text(x + 12, line, name, size=7.5)
        page.text(x + width - 12, line, words(value, panel.unit, defaults(panel).get("decimals")), size=8.5, color=color, ha="right", weight="bold")
        axes = page.axes(x + 12, line + 15, width - 24, max(thick, 4))
        axes.set_axis_off()
        axes.set_xlim(0, top)
        axes.barh([0], [top], color=LINE, height=1)
        axes.barh([0], [min(value, top)], color=color, height=1, alpha=0.85)
        axes.margins(y=0)


def heat(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    series = sorted(answers[0][1], key=lambda one: float(one["metric"]["le"]))
    moments, _ = points(max(series, key=lambda one: len(one["values"])))
    below = [0.0] * len(moments)
    cells = []
    for one in series:
        known = dict(zip(*points(one), strict=True))
        row = [known.get(moment, 0.0) for moment in moments]
        # Extrapolation makes the rates of different buckets differ slightly, which is not a request.
        inside = [value - before for value, before in zip(row, below, strict=True)]
        cells.append([value if value > 0.05 else math.nan for value in inside])
        below = row
    axes = page.axes(x + 52, y + 4, width - 64, height - 30)
    edges = [*range(len(series) + 1)]
    axes.pcolormesh(moments, edges[:-1], cells, cmap=EMBERS, shading="nearest", vmin=0)
    timeline(page, axes, panel.unit)
    axes.set_yticks(edges[:-1], [one["metric"]["le"].replace("+Inf", "∞") for one in series], fontsize=5.5)
    axes.grid(False)


def states(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    named = [(legend_of(target, one), *points(one)) for target, series in answers for one in series]
    axes = page.axes(x + 150, y + 4, width - 162, height - 30)
    mapped = texts(panel)
    for index, (_, moments, values) in enumerate(named):
        for moment, until, value in zip(moments, [*moments[1:], moments[-1]], values, strict=True):
            color = COLORS.get(mapped.get(f"{value:g}", {}).get("color", ""), DIM)
            axes.barh(index, dates.date2num(until) - dates.date2num(moment), left=dates.date2num(moment), height=0.7, color=color)
    axes.set_ylim(len(named) - 0.5, -0.5)
    timeline(page, axes, panel.unit)
    axes.set_yticks(range(len(named)), [name for name, _, _ in named], fontsize=7)
    axes.grid(False)


def grid(page: Page, panel: dashboards.Panel, answers: Answers, x: float, y: float, width: float, height: float) -> None:
    """A table: the queries' answers merged on their labels, by the panel's transformations."""
    names, order = {}, {}
    for transformation in panel.raw["transformations"]:
        if transformation["id"] == "organize":
            names, order = transformation["options"]["renameByName"], transformation["options"]["indexByName"]
    rows: dict[tuple, dict[str, Any]] = {}
    for index, (_, series) in enumerate(answers):
        value_name = "Value" if len(answers) == 1 else f"Value #{chr(ord('A') + index)}"
        for one in series:
            labels = {name: value for name, value in one["metric"].items() if name != "__name__"}
            row = rows.setdefault(tuple(sorted(labels.items())), dict(labels))
            row[value_name] = float(one["value"][1])
    columns = sorted(names, key=lambda name: order.get(name, 99))
    formats: dict[str, dict[str, Any]] = {}
    for override in panel.raw["fieldConfig"]["overrides"]:
        formats[override["matcher"]["options"]] = {change["id"]: change["value"] for change in override["properties"]}
    sort = panel.raw["options"]["sortBy"][0]["displayName"]
    by = next(name for name in columns if names[name] == sort)
    ordered = sorted(rows.values(), key=lambda row: row.get(by, 0) if isinstance(row.get(by, 0), float) else 0, reverse=True)
    shown = ordered[: int((height - 30) / 19)]
    # Labels are as wide as their longest value; numbers share the rest.
    widths = [
        (max([len(str(row.get(name, ""))) for row in shown] + [len(names[name])]) * 7 + 24) if not name.startswith("Value") else 0
        for name in columns
    ]
    numbers = sum(1 for size in widths if not size) or 1
    rest = max(60.0, (width - 24 - sum(widths)) / numbers)
    left = x + 12
    for name, size in zip(columns, widths, strict=True):
        size = size or rest
        is_number = name.startswith("Value")
        at = left + size - 16 if is_number else left
        page.text(at, y + 4, names[name], size=7.5, color="#6e9fff", weight="bold", ha="right" if is_number else "left")
        chosen = formats.get(names[name], {})
        for index, row in enumerate(shown):
            value, color = row.get(name, math.nan), TEXT
            written = str(value)
            if isinstance(value, float):
                written = words(value, chosen.get("unit", panel.unit), chosen.get("decimals"))
                if "thresholds" in chosen and not math.isnan(value):
                    color = color_at(value, chosen["thresholds"]["steps"])
            page.text(at, y + 24 + 19 * index, written, size=7.5, color=color, ha="right" if is_number else "left")
        left += size
    for index in range(len(shown)):
        line = 1 - (y + 20 + 19 * index) / page.height
        page.figure.add_artist(
            plt.Line2D([(x + 8) / page.width, (x + width - 8) / page.width], [line, line], color=EDGE, linewidth=0.5)
        )


# --- the story of an alert -----------------------------------------------------------------------------------------


def alert_story(server: stack.Prometheus, window: grafana.Window, path: Path) -> None:
    """One failing provider in four graphs with a common time axis: the failure, the effect on callers, the alerts."""
    figure, all_axes = plt.subplots(4, 1, figsize=(12, 8.4), dpi=DPI, sharex=True, height_ratios=(1, 1.6, 1.6, 1.3))
    figure.subplots_adjust(left=0.16, right=0.97, top=0.92, bottom=0.06, hspace=0.38)
    figure.text(0.02, 0.965, "A provider fails for two minutes", size=12, weight="bold")

    def ask(expr: str) -> Series:
        return server.query_range(expr, window.start, window.end, window.scrape)["result"]

    page = type("Shared", (), {"window": window})
    bands(all_axes[0], ask("nexusgate_provider_up"), "provider", {1: COLORS["green"], 0: COLORS["red"]})
    all_axes[0].set_title("Circuit breaker: green while it lets traffic through", loc="left", size=8.5, weight="bold")
    calls = [(one["metric"]["provider"], *points(one)) for one in ask("sum by (provider) (rate(nexusgate_upstream_attempts_total[30s]))")]
    graph(all_axes[1], calls, ("#5794f2", "#b877d9"))
    all_axes[1].set_title("Calls a second, by provider", loc="left", size=8.5, weight="bold")
    statuses = [
        (f"{one['metric']['model']} {one['metric']['status']}", *points(one))
        for one in ask('sum by (model, status) (rate(nexusgate_completions_total{status=~"completed|failed"}[30s]))')
    ]
    colors = {"completed": iter(("#73bf69", "#37872d", "#96d98d")), "failed": iter(("#ff9830", "#f2495c", "#c4162a"))}
    graph(all_axes[2], statuses, [next(colors[name.split()[-1]]) for name, _, _ in statuses])
    title = "What callers got: completions a second (o4-mini has no other provider)"
    all_axes[2].set_title(title, loc="left", size=8.5, weight="bold")
    alerts = ask('ALERTS{alertname=~"NexusGate(ProviderDown|ProviderErrors|FailoverStorm|ErrorBudgetFastBurn)"}')
    merged: dict[str, dict[str, Any]] = {}
    for one in alerts:
        name = " ".join(one["metric"].get(label, "") for label in ("alertname", "provider")).replace("NexusGate", "").strip()
        level = 2.0 if one["metric"]["alertstate"] == "firing" else 1.0
        values = merged.setdefault(name, {"metric": {"alert": name}, "values": []})["values"]
        values += [(moment, level) for moment, _ in one["values"]]
    for one in merged.values():
        one["values"].sort()
    bands(all_axes[3], list(merged.values()), "alert", {1: COLORS["yellow"], 2: COLORS["red"]}, window.scrape)
    all_axes[3].set_title("Alerts: yellow pending, red firing", loc="left", size=8.5, weight="bold")
    for axes in all_axes:
        timeline(page, axes, "short")
    for axes, names in ((all_axes[0], None), (all_axes[3], list(merged))):
        axes.set_yticks(axes.get_yticks())
        if names is None:
            names = [one["metric"]["provider"] for one in ask("nexusgate_provider_up")]
        axes.set_yticks(range(len(names)), names, fontsize=7.5)
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        axes.grid(False)
    figure.savefig(path, facecolor=BACK)
    plt.close(figure)


def graph(axes: Axes, named: list, colors: Sequence[str]) -> None:
    for (name, moments, values), color in zip(named, colors, strict=True):
        axes.plot(moments, values, color=color, linewidth=1.3, label=name)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize=7, frameon=False, ncols=4)


def bands(axes: Axes, series: Series, label: str, colors: dict[int, str], step: float = 5) -> None:
    for index, one in enumerate(series):
        for moment, value in one["values"]:
            left = dates.date2num(datetime.fromtimestamp(float(moment), UTC))
            axes.barh(index, step / 86400, left=left, height=0.6, color=colors[round(float(value))], linewidth=0)
