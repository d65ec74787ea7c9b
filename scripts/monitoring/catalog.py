"""The metric catalogue, as `nexusgate metrics-catalog --json` prints it, and the other series and labels for queries."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Labels that Prometheus attaches to everything it scrapes from us.
TARGET_LABELS = frozenset({"job", "instance"})

# Series that the gateway does not declare: Prometheus', and those of the crate metrics-process.
FOREIGN: dict[str, frozenset[str]] = {
    "up": frozenset(),
    "scrape_duration_seconds": frozenset(),
    "scrape_samples_scraped": frozenset(),
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    "process_cpu_seconds_total": frozenset(),
    "process_open_fds": frozenset(),
    "process_max_fds": frozenset(),
    "process_resident_memory_bytes": frozenset(),
    "process_virtual_memory_bytes": frozenset(),
    "process_start_time_seconds": frozenset(),
    "process_threads": frozenset(),
}


@dataclass(frozen=True)
class Metric:
    """One entry of the catalogue."""

    name: str
    type: str
    unit: str
    help: str
    labels: frozenset[str]
    buckets: tuple[float, ...] = field(default=())

    def series_names(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.type == "histogram":
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


class CatalogError(Exception):
    """There is no catalogue to check against."""


def load(path: str | os.PathLike[str] | None = None) -> dict[str, Metric]:
    """The catalogue by metric name, from `path` or $NEXUSGATE_CATALOG."""
    source = path or os.environ.get("NEXUSGATE_CATALOG")
    if not source:
        raise CatalogError("name the catalogue: --catalog FILE or NEXUSGATE_CATALOG (nexusgate metrics-catalog --json)")
    entries = json.loads(Path(source).read_text())
    metrics = [
        Metric(
            name=entry["name"],
            type=entry["type"],
            unit=entry.get("unit", ""),
            help=entry.get("help", ""),
            labels=frozenset(label if isinstance(label, str) else label["name"] for label in entry.get("labels", [])),
            buckets=tuple(entry.get("buckets") or ()),
        )
        for entry in entries
    ]
    if not metrics:
        raise CatalogError(f"{source} holds no metric")
    return {metric.name: metric for metric in metrics}


def known_series(metrics: dict[str, Metric]) -> dict[str, frozenset[str]]:
    """Every series name that may be queried, with its labels."""
    known = {name: labels | TARGET_LABELS for name, labels in FOREIGN.items()}
    for metric in metrics.values():
        for name in metric.series_names():
            bucket = frozenset({"le"}) if name.endswith("_bucket") and metric.type == "histogram" else frozenset()
            known[name] = metric.labels | TARGET_LABELS | bucket
    return known
