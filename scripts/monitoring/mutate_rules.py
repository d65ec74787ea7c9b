#!/usr/bin/env python3
"""Mutation tests of the alerts' tests: break the alerts, one number at a time, and see whether a test notices.

    mutate_rules.py                   all files of rules; takes minutes
    mutate_rules.py providers slo     only these

Each number that an alert compares with is made a hundred times smaller and larger, and its `for` is left out. A change
that no test notices is printed: the alert could fire when it should not, or not fire when it should.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import catalog

PROMETHEUS = catalog.ROOT / "monitoring" / "prometheus"
COMPARED = re.compile(r"(>=|<=|>|<|==)\s+(?:on \(\) group_left \(\) )?(\d+(?:\.\d+)?)\b(?!\.)")


@dataclass(frozen=True)
class Mutant:
    file: str
    alert: str
    change: str
    # The whole file of rules.
    text: str


def replacements(operator: str, number: str) -> list[str]:
    if operator == "==":
        return [str(1 - int(number))]
    value = float(number)
    return [f"{value / 100:f}", f"{value * 100:f}"] if value else ["-1", "1000000"]


def mutants(path: Path) -> Iterator[Mutant]:
    text = path.read_text()
    for alert in re.finditer(r"(?ms)^      - alert: (\w+)\n.+?(?=^      - |\Z|^  - )", text):
        expr = re.search(r"(?ms)^        expr:(.+?)\n        (?:for|labels):", alert[0])
        for number in COMPARED.finditer(alert[0], *expr.span(1)):
            for other in replacements(number[1], number[2]):
                broken = alert[0][: number.start(2)] + other + alert[0][number.end(2) :]
                change = f"{' '.join(number[0].split())} becomes {other}"
                yield Mutant(path.stem, alert[1], change, text[: alert.start()] + broken + text[alert.end() :])
        if patience := re.search(r"(?m)^        for: \w+\n", alert[0]):
            broken = alert[0].replace(patience[0], "", 1)
            yield Mutant(path.stem, alert[1], "no `for`", text[: alert.start()] + broken + text[alert.end() :])


def is_noticed(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory(prefix="nexusgate-mutant-") as name:
        folder = Path(name)
        for part in ("rules", "tests"):
            shutil.copytree(PROMETHEUS / part, folder / part)
        (folder / "rules" / f"{mutant.file}.yml").write_text(mutant.text)
        tests = sorted((folder / "tests").glob(f"{mutant.file}*.test.yml"))
        if not tests:
            return False
        done = subprocess.run(["promtool", "test", "rules", *tests], capture_output=True, text=True, check=False)
        if "FAILED" not in done.stdout + done.stderr and done.returncode:
            raise RuntimeError(f"{mutant.alert}: {mutant.change}: no rule at all: {done.stderr}")
        return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of rules, without .yml")
    args = parser.parse_args()
    paths = sorted((PROMETHEUS / "rules").glob("*.yml"))
    # A test that fails already would notice everything.
    for path in paths:
        if not args.files or path.stem in args.files:
            if is_noticed(Mutant(path.stem, "", "unchanged", path.read_text())):
                raise SystemExit(f"{path.name}: its tests fail as it is")
    made = [mutant for path in paths if not args.files or path.stem in args.files for mutant in mutants(path)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        noticed = list(pool.map(is_noticed, made))
    for mutant, was_noticed in zip(made, noticed, strict=True):
        if not was_noticed:
            print(f"{mutant.file}.yml: {mutant.alert}: {mutant.change}: no test notices", file=sys.stderr)
    print(f"mutants: {len(made)} of {len({mutant.alert for mutant in made})} alerts, {sum(noticed)} noticed")
    return 0 if all(noticed) else 1


if __name__ == "__main__":
    sys.exit(main())
