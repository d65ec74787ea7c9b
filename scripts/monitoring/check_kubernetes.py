#!/usr/bin/env python3
"""Check the Kubernetes manifests.

Built-in kinds are validated against their schemas by kubernetes-validate; the two kinds of the Prometheus operator, for
which it has none, are checked by hand: the rules are those that promtool has tested, the ServiceMonitor finds the
Service. The kustomization lists every file, and cross-references agree.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import kubernetes_validate
import yaml

import build_prometheusrule
import catalog

BASE = catalog.ROOT / "monitoring" / "kubernetes" / "base"
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}
# Seconds that a shutdown may take beyond its delay and grace (docs/OPERATIONS.md).
WORST_SHUTDOWN = 17


def check_references(by_kind: dict[str, dict[str, Any]]) -> list[str]:
    """Names, ports and labels that must agree."""
    problems = []
    pod = by_kind["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    labels, ports = pod["metadata"]["labels"], {port["name"] for port in container["ports"]}
    selectors = {
        "Deployment": by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        "Service": by_kind["Service"]["spec"]["selector"],
        "PodDisruptionBudget": by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        if not selector.items() <= labels.items():
            problems.append(f"{kind}: selects {selector}, the pods are {labels}")
    service_ports = {port["name"] for port in by_kind["Service"]["spec"]["ports"]}
    for port in by_kind["Service"]["spec"]["ports"]:
        if port["targetPort"] not in ports:
            problems.append(f"Service: no container port {port['targetPort']}")
    monitor = by_kind["ServiceMonitor"]["spec"]
    if not monitor["selector"]["matchLabels"].items() <= by_kind["Service"]["metadata"]["labels"].items():
        problems.append("ServiceMonitor: does not select the Service")
    for endpoint in monitor["endpoints"]:
        if endpoint["port"] not in service_ports:
            problems.append(f"ServiceMonitor: no Service port {endpoint['port']}")
        secret = endpoint["authorization"]["credentials"]["name"]
        if {"secretRef": {"name": secret}} not in container["envFrom"]:
            problems.append(f"ServiceMonitor: reads its token from {secret}, the gateway does not")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if container[probe]["httpGet"]["port"] not in ports:
            problems.append(f"Deployment: {probe} asks a port that is not there")
    metric = by_kind["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    target = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    if target["name"] != by_kind["Deployment"]["metadata"]["name"]:
        problems.append(f"HorizontalPodAutoscaler: scales {target['name']}")
    if metric not in catalog.load():
        problems.append(f"HorizontalPodAutoscaler: no metric {metric}")
    environment = {item["name"]: item.get("value", "") for item in container["env"]}
    stopping = sum(int(environment[name].removesuffix("s")) for name in ("SHUTDOWN_DELAY", "SHUTDOWN_GRACE"))
    stopping += WORST_SHUTDOWN
    if stopping > pod["spec"]["terminationGracePeriodSeconds"]:
        problems.append(f"Deployment: stopping takes up to {stopping} s, and the pod is killed before")
    # A stopping pod still gets requests until its readiness has failed.
    readiness = container["readinessProbe"]
    if int(environment["SHUTDOWN_DELAY"].removesuffix("s")) < readiness["periodSeconds"] * readiness["failureThreshold"]:
        problems.append("Deployment: SHUTDOWN_DELAY is over before the readiness probe has failed")
    confined = {**pod["spec"]["securityContext"], **container["securityContext"]}
    for setting, wanted in {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }.items():
        if confined.get(setting) != wanted:
            problems.append(f"Deployment: {setting} is {confined.get(setting)}")
    metrics_port = next(port["containerPort"] for port in container["ports"] if port["name"] == "metrics")
    if not environment["METRICS_ADDR"].endswith(f":{metrics_port}"):
        problems.append("Deployment: METRICS_ADDR is not the port called metrics")
    for rule in by_kind["NetworkPolicy"]["spec"]["ingress"]:
        if any(port["port"] == "metrics" for port in rule["ports"]) and not rule.get("from"):
            problems.append("NetworkPolicy: everybody may scrape")
    return problems


def main() -> int:
    problems = []
    listed = set(yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"])
    there = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    if listed != there:
        problems.append(f"kustomization.yaml lists {sorted(listed)}, the folder holds {sorted(there)}")
    by_kind: dict[str, dict[str, Any]] = {}
    validated = 0
    for path in sorted(BASE / name for name in listed & there):
        for document in yaml.safe_load_all(path.read_text()):
            by_kind[document["kind"]] = document
            if document["kind"] in OPERATOR_KINDS:
                continue
            try:
                kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
                validated += 1
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{path.name}: {error.message}")
    build = [sys.executable, build_prometheusrule.__file__, "--check"]
    if subprocess.run(build, check=False).returncode:
        problems.append("prometheusrule.yaml is not made from the rules")
    problems += check_references(by_kind)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(
        f"kubernetes: {len(by_kind)} objects, {validated} of them validated against the schemas of Kubernetes "
        f"{kubernetes_validate.latest_version()}"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
