#!/usr/bin/env python3
"""Check the built Grafana dashboards without a server.

They equal the output of build.py; every series and label in a query exists; a series that other programs have too is
asked of our job; every legend and table column names a label of the result; panels have a title, a description and a
unit, lie on the grid and do not overlap; links lead somewhere.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import catalog
import check_rules
import dashboards
import promql

BUILD = catalog.ROOT / "monitoring" / "grafana" / "build.py"
# The reference system's dashboard has this many panels by its own account.
OVERVIEW_AT_LEAST = 44
# Their questions, by title, and the panels of Overview that answer them. (The last published version has 39 panels
# under ten headings.)
REFERENCE = {
    # Overview
    "Total Completions": "Completions",
    "Total Embeddings": "Embeddings",
    "Completion Success Rate": "Success rate",
    "Active API Keys": "Active API keys",
    "Active Providers": "Active providers",
    "Active Models": "Active models",
    # Request Rate & Throughput
    "Completion Request Rate (by Model)": "Completion rate by model",
    "Completion Request Rate (by Status)": "Completion rate by status",
    # Latency
    "Completion Duration (p50/p75/p90/p95/p99)": "Completion duration",
    "Time To First Token (TTFT) (p50/p75/p90/p95/p99)": "Time to first token",
    "Latency Distribution": "Latency distribution",
    # Token Usage
    "Token Rate (Prompt vs Completion)": "Token rate",
    "Prompt Tokens by Model": "Prompt tokens by model",
    "Completion Tokens by Model": "Completion tokens by model",
    # Errors, Cache & Rate Limits
    "Error Rate by Model": "Error rate by model",
    "Cache Hit Rate": "Cache-hit rate",
    "Error Type Distribution": "How completions went wrong",
    "Rate Limit Rejections": "Rate-limit rejections",
    "API Key Rate Limit Usage (%)": "Limit usage",
    # API Format Distribution
    "Requests by API Format": "Completions by API format",
    "Requests by Model": "Completions by model",
    "Requests by Status": "Completions by status",
    # Embeddings
    "Embedding Request Rate": "Embedding rate",
    "Embedding Latency (p50/p95)": "Embedding duration",
    # Cost Analysis
    "Cost Over Time (by Model)": "Cost over time",
    "Cost by Provider": "Cost by provider",
    "Cost by API Key": "Cost by key",
    "Cost Breakdown": "Cost breakdown",
    # Trend Analysis
    "Request Rate Comparison": "Request rate against the period before",
    "Cost Comparison": "Cost against the period before",
    "Request Change %": "Request change",
    "Cost Change %": "Cost change",
    "Period Requests": "Requests in this period",
    "Period Cost": "Cost in this period",
    # Model Comparison
    "P95 Latency by Model": "p95 duration by model",
    "Error Rate by Model (compared)": "Error rates compared",
    "Cost per 1K Tokens": "Cost per 1000 tokens",
    "Request Count by Model": "Requests by model",
    "Model Performance Matrix": "Performance matrix",
}
LINK = re.compile(r"/d/([\w-]+)")
# The variables that Grafana itself fills in.
GRAFANAS = {"__range", "__range_s", "__rate_interval"}
CARRIED = re.compile(r"var-(\w+)=\$\{__field\.labels\.(\w+)\}")


def expected_values(panel: dashboards.Panel) -> frozenset[str]:
    """Grafana's names of the value columns: by the query's letter, unless there is only one query."""
    if len(panel.targets) == 1:
        return frozenset({"Value"})
    return frozenset(f"Value #{chr(ord('A') + index)}" for index in range(len(panel.targets)))


def check_panel(panel: dashboards.Panel, known: dict[str, frozenset[str]], variables: set[str]) -> list[str]:
    problems = []
    if not panel.description:
        problems.append("no description")
    if not panel.unit:
        problems.append("no unit")
    if panel.raw.get("datasource", {}).get("uid") != "${datasource}":
        problems.append("does not use the data source variable")
    shapes: list[frozenset[str]] = []
    for target in panel.targets:
        try:
            shape, _ = promql.infer(target.expr, known)
        except promql.Mistake as mistake:
            problems.append(f"{mistake}: {target.expr}")
            continue
        shape = shape or frozenset()
        shapes.append(shape)
        if foreign := promql.of_any_program(target.expr):
            problems.append(f"shows other programs too, as no job is named for {sorted(foreign)}")
        if missing := target.legend_labels() - shape:
            problems.append(f"the legend {target.legend!r} names labels that the result lacks: {sorted(missing)}")
        if panel.columns - shape:
            problems.append(f"columns {sorted(panel.columns - shape)} are not in the result of {target.expr}")
        if panel.type == "table" and shape - panel.columns:
            problems.append(f"labels without a heading: {sorted(shape - panel.columns)}")
        if panel.type == "table" and panel.values != expected_values(panel):
            problems.append(f"the columns of values are {sorted(panel.values)}, not {sorted(expected_values(panel))}")
        if panel.type == "heatmap" and shape != {"le"}:
            problems.append("a heat map wants buckets and nothing else")
        if unknown := set(re.findall(r"\$(\w+)", target.expr)) - variables - GRAFANAS:
            problems.append(f"no such variable: {sorted(unknown)}")
    for link in panel.raw.get("links", []) + panel.raw.get("fieldConfig", {}).get("defaults", {}).get("links", []):
        for variable, label in CARRIED.findall(link.get("url", "")):
            if variable not in variables or any(label not in shape for shape in shapes):
                problems.append(f"the link {link['title']!r} carries {label} to {variable}, which is not there")
    return [f"{panel}: {problem}" for problem in problems]


def check_layout(dashboard: dashboards.Dashboard) -> list[str]:
    problems = []
    taken: dict[tuple[int, int], str] = {}
    for raw in dashboard.raw["panels"]:
        grid = raw["gridPos"]
        if grid["x"] + grid["w"] > 24:
            problems.append(f"{dashboard.title}: {raw['title']} is wider than the page")
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                if other := taken.get((x, y)):
                    problems.append(f"{dashboard.title}: {raw['title']} lies on {other}")
                    break
                taken[(x, y)] = raw["title"]
    idents = [raw["id"] for raw in dashboard.raw["panels"]]
    if len(set(idents)) != len(idents):
        problems.append(f"{dashboard.title}: panels share an id")
    titles = [panel.title for panel in dashboard.panels]
    problems += [f"{dashboard.title}: two panels called {title}" for title in set(titles) if titles.count(title) > 1]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", help="the catalogue as JSON; default $NEXUSGATE_CATALOG")
    args = parser.parse_args()
    metrics = catalog.load(args.catalog)
    known, problems = check_rules.resolve(check_rules.load_rules(), metrics)
    if subprocess.run([sys.executable, str(BUILD), "--check"], check=False).returncode:
        problems.append("the dashboards are not what build.py makes")
    boards = dashboards.load()
    uids = {board.uid for board in boards}
    asked: set[str] = set()
    for board in boards:
        variables = {variable.name for variable in board.variables}
        for panel in board.panels:
            problems += check_panel(panel, known, variables)
            for target in panel.targets:
                try:
                    asked |= promql.infer(target.expr, known)[1]
                except promql.Mistake:
                    pass
        problems += check_layout(board)
        for uid in LINK.findall(str(board.raw)):
            if uid not in uids:
                problems.append(f"{board.title}: a link to {uid}, which is no dashboard")
    overview = next(board for board in boards if board.uid == "nexusgate-overview")
    if len(overview.panels) < OVERVIEW_AT_LEAST:
        problems.append(f"Overview has {len(overview.panels)} panels; the reference has {OVERVIEW_AT_LEAST}")
    page = catalog.ROOT / "docs" / "MONITORING.md"
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text()):
        if not (page.parent / picture).exists():
            problems.append(f"{page.name}: no picture {picture}")
    answers = {panel.title for panel in overview.panels}
    problems += [
        f"Overview does not answer the reference's {question!r}: no panel {answer!r}"
        for question, answer in REFERENCE.items()
        if answer not in answers
    ]
    never = sorted(name for name, metric in metrics.items() if not asked & set(metric.series_names()))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(
        f"dashboards: {len(boards)}, {sum(len(board.panels) for board in boards)} panels "
        f"({len(overview.panels)} on Overview, which answers the {len(REFERENCE)} questions of the reference), "
        f"{sum(len(panel.targets) for board in boards for panel in board.panels)} queries"
        + (f"; in no panel: {', '.join(never)}" if never else "; every metric of the catalogue is in a panel")
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
