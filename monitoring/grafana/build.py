#!/usr/bin/env python3
"""Build the Grafana dashboards.

    build.py            write dashboards/*.json
    build.py --check    say which of them differ from what would be written, and exit 1 if any does

Needs grafana-foundation-sdk (scripts/monitoring/requirements.txt).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402

import internals  # noqa: E402
import keys_and_cost  # noqa: E402
import overview  # noqa: E402
import providers  # noqa: E402

OUT = Path(__file__).parent / "dashboards"


def render() -> dict[str, str]:
    """File name → text, for every dashboard."""
    result = {}
    for module in (overview, providers, keys_and_cost, internals):
        built = module.dashboard().build()
        result[f"{built.uid}.json"] = JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    wanted = render()
    if not args.check:
        OUT.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (OUT / name).write_text(text)
        return 0
    there = {path.name: path.read_text() for path in OUT.glob("*.json")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    for name in stale:
        print(f"dashboards/{name} is not what monitoring/grafana/build.py makes; run it and commit", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
