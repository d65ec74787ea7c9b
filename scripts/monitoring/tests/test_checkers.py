"""The checkers find mistakes: each test gives one something broken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

import catalog
import check_config
import check_dashboards
import check_panels
import check_rules
import dashboards
import grafana
import promql

KNOWN = {
    "requests_total": frozenset({"job", "instance", "model", "status"}),
    "limit": frozenset({"job", "instance", "key"}),
    "duration_bucket": frozenset({"job", "instance", "model", "le"}),
    "process_threads": frozenset({"job", "instance"}),
}
REQUESTS = catalog.Metric("requests_total", "counter", "count", "Requests.", frozenset({"model", "status"}))


# --- queries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ("requests_total", {"job", "instance", "model", "status"}),
        ('sum by (model) (rate(requests_total{status="failed",model=~"$model"}[$__rate_interval]))', {"model"}),
        ("sum without (instance) (requests_total)", {"job", "model", "status"}),
        ("histogram_quantile(0.9, sum by (model, le) (rate(duration_bucket[5m]))) >= 0", {"model"}),
        ("sum by (job) (requests_total) / on (job) group_left (key) limit", {"job", "key"}),
        ('count(requests_total) or on () label_replace(vector(0), "op", "none", "", "")', {"op"}),
        ("sum(requests_total) / 2 > bool 1", set()),
    ],
)
def test_what_a_query_results_in(expr: str, labels: set[str]) -> None:
    assert promql.infer(expr, KNOWN)[0] == labels


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ("request_total", "no such series"),
        ('requests_total{modell="m"}', "no label modell"),
        ("sum by (provider) (requests_total)", "provider"),
        ("sum by (model) (requests_total) / sum by (job) (requests_total)", "never meet"),
        ("requests_total / on (key) limit", "not on both sides"),
        ("histogram_quantile(0.9, sum by (model) (rate(duration_bucket[5m])))", "without le"),
        ('{__name__=~"nothing_.+"}', "no series fits"),
        ("sum by (model) (requests_total", "no PromQL"),
    ],
)
def test_what_is_wrong_with_a_query(expr: str, wrong: str) -> None:
    with pytest.raises(promql.Mistake, match=wrong):
        promql.infer(expr, KNOWN)


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ('max(process_open_fds{instance=~"$instance"})', {"process_open_fds"}),
        ('process_open_fds{job="nexusgate"} / (process_max_fds > 0)', {"process_max_fds"}),
        ("time() - max_over_time((sum(rate(process_cpu_seconds_total[5m])))[1h:])", {"process_cpu_seconds_total"}),
        ('absent(up{job="nexusgate"} == 1)', set()),
        ('sum(nexusgate_info) + sum({__name__=~"nexusgate_(a|b)"}) + count(ALERTS) + sum(nexusgate:a:b)', set()),
    ],
)
def test_series_that_other_programs_have_too(expr: str, found: set[str]) -> None:
    assert promql.of_any_program(expr) == found


def test_variables_are_filled_in_as_grafana_does() -> None:
    # An hour in 600 points; scrapes every 15 s: the documented maximum of interval + scrape and four scrapes.
    window = grafana.Window(0, 3600, 15)
    expr = 'rate(x{model=~"$model",key=~"${key}"}[$__rate_interval]) + increase(x[$__range] offset $__interval)'
    expr += " > time() - $__range_s"
    filled = grafana.fill(expr, window, {"model": ['gpt-4.1 "new"', "o4"], "key": grafana.ALL}, {"key": ".*"})
    assert filled == (
        r'rate(x{model=~"(gpt-4\\.1 \"new\"|o4)",key=~".*"}[60000ms]) + increase(x[3600000ms] offset 15000ms)'
        " > time() - 3600"
    )


# --- answers -------------------------------------------------------------------------------------------------------


def panel(**changes: object) -> dashboards.Panel:
    target = dashboards.Target("expr", "{{model}}", instant=False, format="time_series")
    common = {
        "dashboard": "Test", "title": "Test", "type": "timeseries", "description": "What it shows.", "unit": "short",
        "minimum": 0, "maximum": 1, "grid": (0, 0, 12, 8), "targets": (target,), "columns": frozenset(),
        "values": frozenset(), "raw": {"datasource": {"uid": "${datasource}"}},
    }  # fmt: skip
    return dashboards.Panel(**{**common, **changes})


def matrix(*values: str, **labels: str) -> dict:
    return {"resultType": "matrix", "result": [{"metric": labels, "values": [[0, value] for value in values]}]}


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (matrix("0.5", "NaN", model="m"), None),
        ({"resultType": "matrix", "result": []}, "empty"),
        ({"resultType": "vector", "result": []}, "a vector instead of a matrix"),
        (matrix("NaN", model="m"), "nothing but NaN"),
        (matrix("+Inf", model="m"), "divided by zero"),
        (matrix("1.5", model="m"), "above the panel's scale"),
        (matrix("-1", model="m"), "below the panel's scale"),
        (matrix("1"), "for the legend"),
        (matrix("1", model="m", instance="i"), "nobody asked for"),
    ],
)
def test_what_is_wrong_with_an_answer(answer: dict, wrong: str | None) -> None:
    said = check_panels.check_answer(panel(), panel().targets[0], answer, frozenset({"model"}))
    assert said is None if wrong is None else wrong in said


def test_a_single_number_is_one_number_and_a_ring_has_something_in_it() -> None:
    target = dashboards.Target("expr", "", instant=True, format="time_series")
    two = {"resultType": "vector", "result": [{"metric": {}, "value": [0, "0"]}] * 2}
    assert "2 series" in check_panels.check_answer(panel(type="stat"), target, two, frozenset())
    assert "nothing" in check_panels.check_answer(panel(type="piechart"), target, two, frozenset())
    assert "buckets" in check_panels.check_answer(panel(type="heatmap"), target, two, frozenset())


# --- panels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"description": ""}, "no description"),
        ({"unit": ""}, "no unit"),
        ({"raw": {"datasource": {"uid": "prod"}}}, "data source"),
        ({"targets": (dashboards.Target("sum(nothing_total)", "", False, ""),)}, "no such series"),
        ({"targets": (dashboards.Target("sum(requests_total)", "{{model}}", False, ""),)}, "names labels"),
        ({"targets": (dashboards.Target('sum(requests_total{model="$modell"})', "", False, ""),)}, "no such variable"),
        ({"targets": (dashboards.Target("sum(process_threads)", "", False, ""),)}, "other programs too"),
    ],
)
def test_what_is_wrong_with_a_panel(changes: dict, wrong: str) -> None:
    good = panel(targets=(dashboards.Target("sum by (model) (requests_total)", "{{model}}", False, ""),))
    assert check_dashboards.check_panel(good, KNOWN, {"model"}) == []
    [problem] = check_dashboards.check_panel(dataclasses.replace(good, **changes), KNOWN, {"model"})
    assert wrong in problem


def test_a_table_whose_values_grafana_calls_otherwise_is_found() -> None:
    target = dashboards.Target("sum by (model) (requests_total)", "", True, "table")
    one = panel(type="table", targets=(target,), columns=frozenset({"model"}), values=frozenset({"Value"}))
    assert check_dashboards.check_panel(one, KNOWN, set()) == []
    [problem] = check_dashboards.check_panel(dataclasses.replace(one, values=frozenset({"Value #A"})), KNOWN, set())
    assert "columns of values" in problem


def test_panels_that_lie_on_each_other_are_found() -> None:
    raws = [{"title": f"P{x}", "id": x, "type": "stat", "gridPos": {"x": x, "y": 0, "w": 12, "h": 4}} for x in (0, 6, 18)]
    board = dashboards.Dashboard("uid", "Board", (), (), {"panels": raws})
    problems = check_dashboards.check_layout(board)
    assert any("P6 lies on P0" in problem for problem in problems)
    assert any("P18 is wider" in problem for problem in problems)


# --- rules and their tests -----------------------------------------------------------------------------------------

ALERT = check_rules.Rule("f.yml", "Failing", "rate(requests_total[5m]) > 1", True, {}, {}, used=frozenset({"requests_total"}))
FED = [{"series": 'requests_total{model="m"}', "values": "9+1x5 _ 0+1x5"}]
FIRES = {"name": "Failing fires", "input_series": FED, "alert_rule_test": [{"alertname": "Failing", "exp_alerts": [{}]}]}
HEALTHY = {"name": "healthy traffic", "input_series": FED, "alert_rule_test": [{"alertname": "Failing"}]}
RESET = {"name": "reset of it", "input_series": FED, "alert_rule_test": [{"alertname": "Failing"}]}
STEADY = [{"series": 'requests_total{model="m"}', "values": "9+1x5 _ 15+1x5"}]


@pytest.mark.parametrize(
    ("groups", "wrong"),
    [
        ([FIRES, HEALTHY, RESET], None),
        ([HEALTHY, RESET], "no group 'Failing fires"),
        ([FIRES, RESET], "no 'healthy …' group"),
        ([FIRES, HEALTHY], "no 'reset …' group"),
        ([FIRES, {**HEALTHY, "input_series": []}, RESET], "no 'healthy …' group"),
        ([FIRES, HEALTHY, {**RESET, "input_series": STEADY}], "does not reset"),
        ([{**FIRES, "alert_rule_test": [{"alertname": "Other"}]}, FIRES, HEALTHY, RESET], "no such alert"),
    ],
)
def test_an_alert_without_all_three_tests_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list, wrong: str | None
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "f.test.yml").write_text(yaml.safe_dump({"tests": groups}))
    monkeypatch.setattr(check_rules, "PROMETHEUS", tmp_path)
    problems, counts = check_rules.check_tests([ALERT], {"requests_total": REQUESTS})
    assert counts.groups == len(groups)
    assert problems == [] if wrong is None else any(wrong in problem for problem in problems)


def test_a_recording_rule_that_nothing_tests_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = check_rules.Rule("f.yml", "nexusgate:a:b", "requests_total", False, {}, {}, used=frozenset({"requests_total"}))
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(check_rules, "PROMETHEUS", tmp_path)
    assert any("no test asserts it" in problem for problem in check_rules.check_tests([recorded], {})[0])
    group = {"name": "values", "input_series": [], "promql_expr_test": [{"expr": "round(nexusgate:a:b, 0.1)"}]}
    (tmp_path / "tests" / "f.test.yml").write_text(yaml.safe_dump({"tests": [group]}))
    assert check_rules.check_tests([recorded], {})[0] == []


def test_a_rule_of_unknown_series_or_without_a_runbook_is_found() -> None:
    unknown = dataclasses.replace(ALERT, expr="rate(nothing_total[5m]) > 1")
    assert "no such series" in check_rules.resolve([unknown], {"requests_total": REQUESTS})[1][0]
    loop = dataclasses.replace(ALERT, name="nexusgate:a:b", expr="nexusgate:a:b", alert=False)
    assert "depends on itself" in check_rules.resolve([loop], {"requests_total": REQUESTS})[1][0]
    said = "\n".join(check_rules.check_shape_of_rules([ALERT]))
    for expected in ("severity is one of", "no summary", "no description", "no runbook_url", "has no heading for it"):
        assert expected in said
    unnamed = dataclasses.replace(ALERT, name="nexusgate_requests", alert=False)
    assert "level:metric:operation" in "\n".join(check_rules.check_shape_of_rules([unnamed]))


# --- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("prom/prometheus:v3.5.0", True),
        ("postgres:17.6-alpine", True),
        ("redis:7.4.5-alpine", True),
        ("redis", False),
        ("redis:latest", False),
        ("redis:7", False),
        ("grafana/grafana:12.1", False),
    ],
)
def test_which_images_are_pinned(image: str, pinned: bool) -> None:
    service = {"image": image, "healthcheck": {}, "restart": "always"}
    assert check_config.check_service("s", service, "") == ([] if pinned else [f"compose: s: the image {image} is not pinned"])


def test_what_is_wrong_with_a_service() -> None:
    service = {"image": "redis:7.4.5", "ports": [{"published": "6379"}]}
    said = "\n".join(check_config.check_service("redis", service, ""))
    for expected in ("no health check", "no restart policy", "beyond the loopback"):
        assert expected in said


def test_the_commented_job_takes_the_place_of_the_static_one() -> None:
    text = "global: {}\n\nscrape_configs:\n  - job_name: nexusgate\n    x: 1\n  # Words.\n  # - job_name: nexusgate\n  #   y: 2\n"
    loaded = yaml.safe_load(check_config.kubernetes_job(text))
    assert loaded == {"global": {}, "scrape_configs": [{"job_name": "nexusgate", "y": 2}]}
