#!/usr/bin/env python3
"""Wrap the rules of monitoring/prometheus/rules into a PrometheusRule for Kubernetes.

    build_prometheusrule.py            write monitoring/kubernetes/base/prometheusrule.yaml
    build_prometheusrule.py --check    exit 1 when the file is out of date
"""

from __future__ import annotations

import sys

import yaml

import catalog

RULES = catalog.ROOT / "monitoring" / "prometheus" / "rules"
OUT = catalog.ROOT / "monitoring" / "kubernetes" / "base" / "prometheusrule.yaml"
HEAD = """\
# Built by scripts/monitoring/build_prometheusrule.py from monitoring/prometheus/rules: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nexusgate
  namespace: nexusgate
  labels:
    app.kubernetes.io/name: nexusgate
spec:
  groups:
"""


def render() -> str:
    """The manifest. The groups keep their text, comments included."""
    groups = []
    for path in sorted(RULES.glob("*.yml")):
        _, _, body = path.read_text().partition("groups:\n")
        groups.append("".join(f"  {line}" if line.strip() else line for line in body.splitlines(keepends=True)))
    return HEAD + "\n".join(groups)


def main() -> int:
    text = render()
    loaded = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    if yaml.safe_load(text)["spec"]["groups"] != loaded:
        raise SystemExit("the wrapped rules are not the rules")
    if "--check" not in sys.argv[1:]:
        OUT.write_text(text)
        return 0
    if not OUT.exists() or OUT.read_text() != text:
        print(f"{OUT.relative_to(catalog.ROOT)} is stale: run scripts/monitoring/build_prometheusrule.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
