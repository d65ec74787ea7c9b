"""Panels in situations that the running demo of check_panels.py is never in: promtool answers their queries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

import dashboards
import grafana

WINDOW = grafana.Window(0, 600, 15)


def query(board: str, title: str) -> str:
    """The only query of a panel, as Grafana sends it for All."""
    [found] = [one for one in dashboards.load() if one.uid == board]
    [panel] = [panel for panel in found.panels if panel.title == title]
    [target] = panel.targets
    all_values = {variable.name: variable.all_value for variable in found.variables}
    return grafana.fill(target.expr, WINDOW, dict.fromkeys(all_values, grafana.ALL), all_values)


def assert_answer(folder: Path, expr: str, series: dict[str, str], answer: dict[str, float]) -> None:
    """Asks at the end of the window. `series`, a sample every 15 s, and `answer` are by their labels."""
    question = {
        "expr": f"round({expr}, 0.01)",
        "eval_time": "10m",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in answer.items()],
    }
    group = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [question],
    }
    file = folder / "panel.test.yml"
    file.write_text(yaml.safe_dump({"tests": [group]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# A gateway may serve both, or one of them alone.
KINDS = [["completions"], ["embeddings"], ["completions", "embeddings"]]
SERVED = pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)


def finished(kinds: list[str]) -> dict[str, str]:
    return {f'nexusgate_{kind}_total{{instance="a",model="m"}}': "0+4x40" for kind in kinds}


@SERVED
def test_refusals_are_a_share_of_whatever_is_served(tmp_path: Path, kinds: list[str]) -> None:
    rejected = {'nexusgate_requests_rejected_total{instance="a",reason="rate_limited"}': "0+1x40"}
    share = {"{}": round(1 / (1 + 4 * len(kinds)), 2)}
    assert_answer(tmp_path, query("nexusgate-overview", "Refused at the door"), finished(kinds) | rejected, share)


@SERVED
def test_each_request_may_leave_two_providers(tmp_path: Path, kinds: list[str]) -> None:
    moves = f"0+{8 * len(kinds)}x40"
    moved = {'nexusgate_failovers_total{instance="a",model="m",provider="p",outcome="timeout"}': moves}
    assert_answer(tmp_path, query("nexusgate-providers", "Failovers per request"), finished(kinds) | moved, {"{}": 2})


@pytest.mark.parametrize(
    ("scraped", "values", "shown"),
    [
        ("9x40", "_x20 1x20", 1),  # The counter comes with the first one.
        ("9x40", "_x20 1x5 4x15", 4),
        ("9x40", "3x40", 0),  # They were before the time range.
        ("9x40", "_x40 3", 3),
        ("9x40", "3x20 5x20", 2),
        ("9x40", "_x40", 0),
        ("stale 9x39", "stale 3x39", 0),  # The scrape failed with which the time range begins.
    ],
)
def test_the_first_series_that_is_refused_is_shown(tmp_path: Path, scraped: str, values: str, shown: float) -> None:
    metric = 'nexusgate_metrics_overflow_total{job="nexusgate",instance="a",metric="nexusgate_cost_total_usd_total"}'
    old = 'nexusgate_metrics_overflow_total{job="nexusgate",instance="b",metric="nexusgate_completions_total"}'
    # Prometheus has the time range, and one sample from before it.
    series = {
        'nexusgate_metrics_series{job="nexusgate",instance="a"}': scraped,
        'process_start_time_seconds{job="nexusgate",instance="a"}': scraped.replace("9x", "-90000x"),
        metric: values,
        old: "7x40",
    }
    assert_answer(tmp_path, query("nexusgate-internals", "Series refused"), series, {"{}": shown})


def test_a_process_that_refuses_series_from_its_start_is_shown(tmp_path: Path) -> None:
    metric = 'nexusgate_metrics_overflow_total{job="nexusgate",instance="a",metric="nexusgate_cost_total_usd_total"}'
    series = {
        'nexusgate_metrics_series{job="nexusgate",instance="a"}': "_x20 9x20",
        'process_start_time_seconds{job="nexusgate",instance="a"}': "_x20 290x20",
        metric: "_x20 3x20",
    }
    assert_answer(tmp_path, query("nexusgate-internals", "Series refused"), series, {"{}": 3})


@pytest.mark.parametrize(
    ("title", "metric", "gateway", "other", "shown"),
    [
        ("Youngest instance", "process_start_time_seconds", "100x40", "500x40", {"{}": 500}),
        ("CPU", "process_cpu_seconds_total", "0+30x40", "0+45x40", {'{job="nexusgate",instance="a"}': 2}),
        ("Memory", "process_resident_memory_bytes", "5x40", "9x40", {'{job="nexusgate",instance="a"}': 5}),
    ],
)
def test_the_process_is_the_gateway(
    tmp_path: Path, title: str, metric: str, gateway: str, other: str, shown: dict[str, float]
) -> None:
    series = {f'{metric}{{job="nexusgate",instance="a"}}': gateway, f'{metric}{{job="prometheus",instance="p"}}': other}
    assert_answer(tmp_path, query("nexusgate-internals", title), series, shown)
