#!/usr/bin/env python3
"""Write the table of alerts in docs/MONITORING.md from the rules.

    build_alert_table.py            write it
    build_alert_table.py --check    exit 1 when it is out of date
"""

from __future__ import annotations

import re
import sys

import yaml

import catalog

PAGE = catalog.ROOT / "docs" / "MONITORING.md"
BEGIN, END = "<!-- alerts: built by scripts/monitoring/build_alert_table.py -->", "<!-- /alerts -->"
#: File of rules → the subject of its alerts, in the order of the table.
ABOUT = {
    "slo.yml": "service levels",
    "providers.yml": "providers",
    "internals.yml": "the gateway",
    "keys-and-cost.yml": "keys and cost",
    "budget.yml": "budget",
}


def table() -> str:
    lines = ["| about | alert | severity | after | says |", "|---|---|---|---|---|"]
    for name, about in ABOUT.items():
        rules = yaml.safe_load((catalog.ROOT / "monitoring" / "prometheus" / "rules" / name).read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
            summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", rule["annotations"]["summary"])
            alert = rule["alert"]
            lines.append(
                f"| {about} | [{alert}](#{alert.lower()}) | {rule['labels']['severity']} | {rule.get('for', 'at once')} | {summary} |"
            )
    return "\n".join(lines)


def main() -> int:
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name} has no place for the table")
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted)
        return 0
    if text != wanted:
        print("the table of alerts is stale: run scripts/monitoring/build_alert_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
