"""Grafana's part, without Grafana: fills in variables and sends a panel's queries to Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dashboards
import stack

# Grafana requests about one point a pixel; a panel of half a laptop screen.
POINTS = 600
ALL = "$__all"
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+),\s*(?P<label>\w+)\)\s*$")


@dataclass(frozen=True)
class Window:
    """A dashboard's time range, and the data source's scrape interval."""

    start: float
    end: float
    scrape: float

    @property
    def range(self) -> float:
        return self.end - self.start

    @property
    def step(self) -> float:
        """$__interval: no finer than the scrapes."""
        return max(self.range / POINTS, self.scrape)

    @property
    def rate_interval(self) -> float:
        """$__rate_interval, as Grafana documents it: at least four scrapes."""
        return max(self.step + self.scrape, 4 * self.scrape)


def escape(value: str) -> str:
    """A value inside a regular expression inside double quotes, as Grafana's Prometheus data source writes it."""
    escaped = re.sub(r"[$^*{}\[\]'+?.()|\\]", lambda match: "\\" + match.group(), value)
    return escaped.replace("\\", "\\\\").replace('"', '\\"')


def fill(expr: str, window: Window, chosen: Mapping[str, Sequence[str] | str], all_values: Mapping[str, str]) -> str:
    """`expr` with every variable replaced. `chosen` maps a variable to ALL, or to the ticked values."""

    def seconds(value: float) -> str:
        return f"{round(value * 1000)}ms"

    expr = expr.replace("$__rate_interval", seconds(window.rate_interval))
    expr = expr.replace("$__range_s", str(round(window.range)))
    expr = expr.replace("$__range", seconds(window.range)).replace("$__interval", seconds(window.step))

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        value = chosen[name]
        if value == ALL:
            return all_values[name]
        values = [escape(one) for one in value]
        return values[0] if len(values) == 1 else "(" + "|".join(values) + ")"

    return re.sub(r"\$\{?(\w+)\}?", variable, expr)


def options(server: stack.Prometheus, variable: dashboards.Variable) -> list[str]:
    """The options of a variable's drop-down."""
    match = _LABEL_VALUES.match(variable.query)
    if match is None:
        raise ValueError(f"variable {variable.name}: not a label_values query: {variable.query}")
    return server.label_values(match["selector"], match["label"])


def ask(server: stack.Prometheus, target: dashboards.Target, expr: str, window: Window) -> dict[str, Any]:
    """The answer to a query of a panel: a vector for an instant query, a matrix for the others."""
    if target.instant:
        return server.query(expr, window.end)
    return server.query_range(expr, window.start, window.end, window.step)
