#!/usr/bin/env python3
"""Send every query of every panel to a real Prometheus that has scraped a running gateway.

Variables are filled in as Grafana would, twice: with All, and with every value ticked one by one. A panel passes when
each of its queries returns data of the shape that its kind of panel draws: the right type, the labels that its legend or
its columns name, finite values within the panel's scale, one series for a single number, buckets for a heat map.

The scraped gateway: see `gateway` in stack.py (NEXUSGATE_BASE_URL, NEXUSGATE_BIN, or the built demo).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence

import catalog
import check_rules
import dashboards
import grafana
import promql
import stack

SCRAPE = 1.0
# Extrapolation makes the rates of different series differ slightly.
SLACK = 0.02


def finite(values: Sequence[str]) -> list[float]:
    numbers = [float(value) for value in values]
    if any(math.isinf(number) for number in numbers):
        raise ValueError("an infinite value: something was divided by zero")
    return [number for number in numbers if not math.isnan(number)]


def check_answer(
    panel: dashboards.Panel, target: dashboards.Target, answer: dict, shape: frozenset[str]
) -> str | None:
    """The mistake in the answer to one query, or None."""
    wanted = "vector" if target.instant else "matrix"
    if answer["resultType"] != wanted:
        return f"a {answer['resultType']} instead of a {wanted}"
    series = answer["result"]
    if not series:
        return "empty"
    for one in series:
        labels = set(one["metric"]) - {"__name__"}
        if target.legend_labels() - labels:
            return f"no {sorted(target.legend_labels() - labels)} for the legend: {one['metric']}"
        if panel.columns - labels:
            return f"no {sorted(panel.columns - labels)} for the columns: {one['metric']}"
        if labels - shape:
            return f"labels nobody asked for: {sorted(labels - shape)}"
    try:
        numbers = [
            number
            for one in series
            for number in finite([one["value"][1]] if target.instant else [value for _, value in one["values"]])
        ]
    except ValueError as error:
        return str(error)
    if not numbers:
        return "nothing but NaN"
    if panel.minimum is not None and min(numbers) < panel.minimum - SLACK * abs(panel.minimum) - 1e-9:
        return f"{min(numbers)} is below the panel's scale"
    if panel.maximum is not None and max(numbers) > panel.maximum * (1 + SLACK):
        return f"{max(numbers)} is above the panel's scale"
    if panel.type == "stat" and len(series) != 1 and not target.legend:
        return f"{len(series)} series for one number"
    if panel.type == "piechart" and sum(numbers) <= 0:
        return "a ring of nothing"
    if panel.type == "heatmap" and (len(series) < 3 or not any(one["metric"]["le"] == "+Inf" for one in series)):
        return "no buckets"
    return None


def check_all(
    server: stack.Prometheus,
    boards: Sequence[dashboards.Dashboard],
    window: grafana.Window,
    known: dict[str, frozenset[str]],
    ticked: bool,
) -> tuple[list[str], int]:
    """The panels that fail, and the number of queries."""
    problems, asked = [], 0
    for board in boards:
        offered = {variable.name: grafana.options(server, variable) for variable in board.variables}
        all_values = {variable.name: variable.all_value for variable in board.variables}
        for name, values in offered.items():
            if not values:
                problems.append(f"{board.title}: the variable {name} offers nothing")
        chosen = {name: values if ticked and values else grafana.ALL for name, values in offered.items()}
        for panel in board.panels:
            for target in panel.targets:
                asked += 1
                expr = grafana.fill(target.expr, window, chosen, all_values)
                shape, _ = promql.infer(target.expr, known)
                try:
                    problem = check_answer(panel, target, grafana.ask(server, target, expr, window), shape or frozenset())
                except stack.QueryError as error:
                    problem = str(error)
                if problem:
                    problems.append(f"{panel}: {problem}\n    {expr}")
    return problems, asked


def settle(server: stack.Prometheus, seconds: float) -> None:
    """Waits until Prometheus has scraped the gateway for this long."""
    seen = f'time() - min_over_time(timestamp(up{{job="nexusgate"}})[{round(seconds * 2)}s:1s])'
    stack.wait_until(lambda: (server.scalar(seen) or 0) >= seconds, seconds * 2 + 60, "enough scrapes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", help="the catalogue as JSON; default $NEXUSGATE_CATALOG")
    parser.add_argument("--range", type=float, default=60, help="seconds that the dashboards show (default 60)")
    args = parser.parse_args()
    metrics = catalog.load(args.catalog)
    known, problems = check_rules.resolve(check_rules.load_rules(), metrics)
    boards = dashboards.load()
    with stack.scratch() as folder, stack.gateway(folder) as (url, token):
        config = stack.write_config(
            folder / "prometheus",
            target=url.removeprefix("http://"),
            token=token,
            scrape_interval=f"{SCRAPE:.0f}s",
            evaluation_interval="2s",
        )
        with stack.prometheus(config, folder) as server:
            # Twice the range, for the panels that compare it with the range before.
            settle(server, 2 * args.range + 15)
            end = time.time()
            window = grafana.Window(end - args.range, end, SCRAPE)
            asked = 0
            for ticked in (False, True):
                found, count = check_all(server, boards, window, known, ticked)
                problems += found if not ticked else [f"every value ticked: {problem}" for problem in found]
                asked += count
    for problem in problems:
        print(problem, file=sys.stderr)
    panels = sum(len(board.panels) for board in boards)
    empty = sum("empty" in problem.splitlines()[0] for problem in problems)
    print(
        f"panels: {panels} panels, {asked} queries asked (each twice: All, and every value ticked), {empty} empty, "
        f"{len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
