#!/usr/bin/env python3
"""Check the recording and alert rules, and that every alert is tested.

* every series and label in a rule exists in the catalogue (or is recorded by another rule); one that other programs
  have too is asked of our job;
* recording rules are named level:metric:operation, alerts have a severity, a summary, a description and a runbook entry
  that exists, and name only labels that the alert has; the table of alerts in the docs is theirs;
* every alert has a test in which it fires, a group of healthy series and a group with counter resets that leave it
  quiet, and those two groups feed every series that the alert reads;
* every recording rule is read by such an alert, or its value is asserted.

promtool runs the tests; this script checks that they are complete.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

import build_alert_table
import catalog
import promql

PROMETHEUS = catalog.ROOT / "monitoring" / "prometheus"
RUNBOOK = catalog.ROOT / "docs" / "MONITORING.md"
RECORD_NAME = re.compile(r"nexusgate:[a-z0-9_]+:[a-z0-9_]+")
SEVERITIES = {"critical", "warning", "info"}
LABEL_IN_TEXT = re.compile(r"\$labels\.(\w+)")


@dataclass
class Rule:
    """A rule of ours, with the result of the inference."""

    file: str
    name: str
    expr: str
    alert: bool
    labels: dict[str, str]
    annotations: dict[str, str]
    shape: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()


def load_rules() -> list[Rule]:
    rules = []
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                rules.append(
                    Rule(
                        file=path.name,
                        name=rule.get("record") or rule["alert"],
                        expr=rule["expr"],
                        alert="alert" in rule,
                        labels=rule.get("labels", {}),
                        annotations=rule.get("annotations", {}),
                    )
                )
    return rules


def resolve(rules: list[Rule], metrics: dict[str, catalog.Metric]) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Infer every rule, in an order in which recorded series are known before their use."""
    known = catalog.known_series(metrics)
    recorded = {rule.name for rule in rules if not rule.alert}
    problems: list[str] = []
    waiting = list(rules)
    while waiting:
        later: list[Rule] = []
        for rule in waiting:
            try:
                shape, used = promql.infer(rule.expr, known)
            except promql.Mistake as mistake:
                name = str(mistake).removeprefix("no such series: ")
                if name in recorded and name not in known:
                    later.append(rule)
                else:
                    problems.append(f"{rule.file}: {rule.name}: {mistake}")
                continue
            rule.shape, rule.used = frozenset(shape or ()), frozenset(used)
            if foreign := promql.of_any_program(rule.expr):
                problems.append(f"{rule.file}: {rule.name}: no job is named for {sorted(foreign)}")
            if not rule.alert:
                known[rule.name] = rule.shape | frozenset(rule.labels)
        if len(later) == len(waiting):
            problems += [f"{rule.file}: {rule.name}: depends on itself" for rule in later]
            break
        waiting = later
    return known, problems


def check_shape_of_rules(rules: list[Rule]) -> list[str]:
    problems = []
    seen: set[str] = set()
    headings = set(re.findall(r"(?m)^### (NexusGate\w+)", RUNBOOK.read_text())) if RUNBOOK.exists() else set()
    for rule in rules:
        where = f"{rule.file}: {rule.name}"
        if rule.name in seen:
            problems.append(f"{where}: declared twice")
        seen.add(rule.name)
        if not rule.alert:
            if not RECORD_NAME.fullmatch(rule.name):
                problems.append(f"{where}: not named level:metric:operation")
            continue
        if rule.labels.get("severity") not in SEVERITIES:
            problems.append(f"{where}: severity is one of {sorted(SEVERITIES)}")
        for annotation in ("summary", "description", "runbook_url"):
            if not rule.annotations.get(annotation):
                problems.append(f"{where}: no {annotation}")
        if rule.annotations.get("runbook_url") != f"docs/MONITORING.md#{rule.name.lower()}":
            problems.append(f"{where}: the runbook is at docs/MONITORING.md#{rule.name.lower()}")
        if rule.name not in headings:
            problems.append(f"{where}: docs/MONITORING.md has no heading for it")
        named = set(LABEL_IN_TEXT.findall(" ".join(rule.annotations.values())))
        if missing := named - rule.shape - rule.labels.keys():
            problems.append(f"{where}: its text names labels that it does not have: {sorted(missing)}")
    for heading in sorted(headings - {rule.name for rule in rules if rule.alert}):
        problems.append(f"docs/MONITORING.md: a runbook entry for {heading}, which is no alert")
    return problems


def raw_series(rule: Rule, by_name: dict[str, Rule]) -> set[str]:
    """The scraped series a rule reads, through recording rules too."""
    found: set[str] = set()
    for name in rule.used:
        found |= raw_series(by_name[name], by_name) if name in by_name else {name}
    return found


def reads(rule: Rule, by_name: dict[str, Rule]) -> set[str]:
    """The recording rules that a rule reads, through others too."""
    found = rule.used & by_name.keys()
    return found.union(*(reads(by_name[name], by_name) for name in found))


@dataclass
class Counts:
    """The contents of the tests."""

    files: int = 0
    groups: int = 0
    assertions: int = 0
    firing: int = 0


def series_name(series: str) -> str:
    return series.split("{", 1)[0].strip()


def resets(values: str) -> bool:
    """Whether a series notation such as `9+1x5 _ 0+1x5` falls."""
    starts = [float(part) for part in re.findall(r"(?:^|\s)(-?[\d.]+)", values)]
    return any(later < earlier for earlier, later in zip(starts, starts[1:], strict=False))


def check_tests(rules: list[Rule], metrics: dict[str, catalog.Metric]) -> tuple[list[str], Counts]:
    by_name = {rule.name: rule for rule in rules if not rule.alert}
    alerts = {rule.name: rule for rule in rules if rule.alert}
    counters = {name for metric in metrics.values() if metric.type != "gauge" for name in metric.series_names()}
    fires: set[str] = set()
    quiet: dict[str, set[str]] = {"healthy": set(), "reset": set()}
    asserted: set[str] = set()
    problems: list[str] = []
    counts = Counts()
    for path in sorted((PROMETHEUS / "tests").glob("*.test.yml")):
        counts.files += 1
        for group in yaml.safe_load(path.read_text())["tests"]:
            counts.groups += 1
            counts.assertions += len(group.get("alert_rule_test", [])) + len(group.get("promql_expr_test", []))
            kind = next((kind for kind in quiet if group["name"].startswith(f"{kind} ")), None)
            fed = {series_name(series["series"]) for series in group["input_series"]}
            for test in group.get("promql_expr_test", []):
                asserted.update(re.findall(r"nexusgate:\w+:\w+", test["expr"]))
            for test in group.get("alert_rule_test", []):
                name = test["alertname"]
                where = f"{path.name}: {group['name']}: {name}"
                if name not in alerts:
                    problems.append(f"{where}: no such alert")
                    continue
                if test.get("exp_alerts"):
                    counts.firing += 1
                    if group["name"].startswith(f"{name} fires"):
                        fires.add(name)
                    if kind:
                        problems.append(f"{where}: fires in a {kind} group")
                    continue
                if kind:
                    needed = raw_series(alerts[name], by_name)
                    if needed <= fed:
                        quiet[kind].add(name)
            if kind == "reset":
                for series in group["input_series"]:
                    if series_name(series["series"]) in counters and not resets(series["values"]):
                        problems.append(f"{path.name}: {group['name']}: {series['series']} does not reset")
    read = set().union(*(reads(alert, by_name) for alert in alerts.values()))
    for name in sorted(by_name.keys() - read - asserted):
        problems.append(f"{name}: no alert reads it, and no test asserts it")
    for name in alerts:
        if name not in fires:
            problems.append(f"{name}: no group '{name} fires …' in which it does")
        for kind, names in quiet.items():
            if name not in names:
                needed = sorted(raw_series(alerts[name], by_name))
                problems.append(f"{name}: no '{kind} …' group that holds it back and feeds {needed}")
    return problems, counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", help="the catalogue as JSON; default $NEXUSGATE_CATALOG")
    args = parser.parse_args()
    metrics = catalog.load(args.catalog)
    rules = load_rules()
    _, problems = resolve(rules, metrics)
    problems += check_shape_of_rules(rules)
    test_problems, counts = check_tests(rules, metrics)
    problems += test_problems
    if subprocess.run([sys.executable, build_alert_table.__file__, "--check"], check=False).returncode:
        problems.append("docs/MONITORING.md: the table of alerts is not made from the rules")
    for problem in problems:
        print(problem, file=sys.stderr)
    alerts = sum(rule.alert for rule in rules)
    print(
        f"rules: {len(rules) - alerts} recording rules, {alerts} alerts; tests: {counts.groups} groups in {counts.files} "
        f"files, {counts.assertions} assertions, {counts.firing} of them that an alert fires"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
