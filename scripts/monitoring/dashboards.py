"""The built dashboards as Python objects: panels with their queries."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import catalog

FOLDER = catalog.ROOT / "monitoring" / "grafana" / "dashboards"
LEGEND_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Target:
    """One query of a panel."""

    expr: str
    legend: str
    instant: bool
    format: str

    def legend_labels(self) -> frozenset[str]:
        return frozenset(LEGEND_LABEL.findall(self.legend))


@dataclass(frozen=True)
class Panel:
    """A panel with queries (rows are not panels)."""

    dashboard: str
    title: str
    type: str
    description: str
    unit: str
    minimum: float | None
    maximum: float | None
    grid: tuple[int, int, int, int]
    targets: tuple[Target, ...]
    # Labels that a table shows as columns.
    columns: frozenset[str]
    # The names of its value columns before they are renamed.
    values: frozenset[str]
    raw: dict[str, Any] = field(hash=False, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.title}"


@dataclass(frozen=True)
class Variable:
    """A variable filled by a query."""

    name: str
    query: str
    all_value: str


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[Variable, ...]
    raw: dict[str, Any] = field(hash=False, compare=False, repr=False)


def _panel(name: str, raw: dict[str, Any]) -> Panel:
    defaults = raw.get("fieldConfig", {}).get("defaults", {})
    renamed: frozenset[str] = frozenset()
    for transformation in raw.get("transformations", []):
        if transformation["id"] == "organize":
            renamed = frozenset(transformation["options"]["renameByName"])
    values = frozenset(name for name in renamed if name.startswith("Value"))
    grid = raw["gridPos"]
    return Panel(
        dashboard=name,
        title=raw["title"],
        type=raw["type"],
        description=raw.get("description", ""),
        unit=defaults.get("unit", ""),
        minimum=defaults.get("min"),
        maximum=defaults.get("max"),
        grid=(grid["x"], grid["y"], grid["w"], grid["h"]),
        targets=tuple(
            Target(t["expr"], t.get("legendFormat", ""), bool(t.get("instant")), t.get("format", "time_series"))
            for t in raw["targets"]
        ),
        columns=renamed - values,
        values=values,
        raw=raw,
    )


def load_file(path: Path) -> Dashboard:
    raw = json.loads(path.read_text())
    name = raw["title"].removeprefix("nexusgate / ")
    return Dashboard(
        uid=raw["uid"],
        title=raw["title"],
        panels=tuple(_panel(name, panel) for panel in raw["panels"] if panel["type"] != "row"),
        variables=tuple(
            Variable(v["name"], v["query"], v.get("allValue", "")) for v in raw["templating"]["list"] if v["type"] == "query"
        ),
        raw=raw,
    )


def load() -> list[Dashboard]:
    return [load_file(path) for path in sorted(FOLDER.glob("*.json"))]
