"""Real Prometheus and Alertmanager processes on free ports and in temporary folders, for checks and pictures."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import catalog

MONITORING = catalog.ROOT / "monitoring"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def get(url: str, *, token: str = "", timeout: float = 30) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return response.read().decode()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a condition; a refused connection counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is stopped at the end of the block, and whose log is shown if it exits early."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
        try:
            yield child
            if child.poll() not in (None, 0):
                raise RuntimeError(f"{command[0]} ended with {child.returncode}:\n{log.read_text()[-2000:]}")
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(15)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str):
        self.url = url

    def api(self, path: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters, doseq=True).encode()
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", data=query if parameters else None)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(json.load(error).get("error", str(error))) from error

    def query(self, expr: str, at: float) -> Any:
        return self.api("query", query=expr, time=at)

    def query_range(self, expr: str, start: float, end: float, step: float) -> Any:
        return self.api("query_range", query=expr, start=start, end=end, step=step)

    def scalar(self, expr: str) -> float | None:
        """The single value of an expression now, or None."""
        result = self.query(expr, time.time())["result"]
        return float(result[0]["value"][1]) if result else None

    def label_values(self, selector: str, label: str) -> list[str]:
        query = urllib.parse.urlencode({"match[]": selector})
        data = json.loads(get(f"{self.url}/api/v1/label/{label}/values?{query}"))
        return data["data"]


class QueryError(Exception):
    """Prometheus refused a query."""


def write_config(
    folder: Path,
    *,
    target: str,
    token: str,
    scrape_interval: str,
    evaluation_interval: str,
    alertmanager: str | None = None,
    edit_rules: Callable[[str], str] = lambda text: text,
) -> Path:
    """The shipped prometheus.yml with its addresses and intervals replaced, beside the shipped rules."""
    config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": scrape_interval, "evaluation_interval": evaluation_interval}
    # Never longer than the interval.
    config["global"]["scrape_timeout"] = scrape_interval
    if alertmanager:
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    else:
        del config["alerting"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["nexusgate"]["static_configs"] = [{"targets": [target]}]
    if not token:
        del jobs["nexusgate"]["authorization"]
    config["scrape_configs"] = [jobs["nexusgate"]]
    (folder / "secrets").mkdir(parents=True)
    (folder / "secrets" / "metrics_token").write_text(token)
    (folder / "targets").mkdir()
    (folder / "rules").mkdir()
    for rules in (MONITORING / "prometheus" / "rules").glob("*.yml"):
        (folder / "rules" / rules.name).write_text(edit_rules(rules.read_text()))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with this configuration, ready."""
    port = free_port()
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=2d", "--log.level=warn",
    ]  # fmt: skip
    with process(command, folder / "prometheus.log"):
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(lambda: "ready" in get(f"{server.url}/-/ready").lower(), 30, "prometheus")
        yield server


@contextlib.contextmanager
def alertmanager(config: Path, folder: Path) -> Iterator[str]:
    """Alertmanager with this configuration, ready; yields its URL."""
    port = free_port()
    command = [
        shutil.which("prometheus-alertmanager") or "alertmanager", f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=", "--log.level=warn",
    ]  # fmt: skip
    with process(command, folder / "alertmanager.log"):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: get(f"{url}/-/ready") != "", 30, "alertmanager")
        yield url


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nexusgate-monitoring-") as name:
        yield Path(name)


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, str]]:
    """The gateway to scrape: (base URL, metrics token).

    NEXUSGATE_BASE_URL (and METRICS_BEARER_TOKEN) names a running one; else the demo is started.
    """
    if base := os.environ.get("NEXUSGATE_BASE_URL"):
        yield base.rstrip("/"), os.environ.get("METRICS_BEARER_TOKEN", "")
        return
    with demo(folder) as ready:
        yield ready["url"], ""


@contextlib.contextmanager
def demo(folder: Path) -> Iterator[dict[str, Any]]:
    """`nexusgate demo` on a free port; yields its JSON ready line (NEXUSGATE_DEMO_RATE requests a second)."""
    rate = os.environ.get("NEXUSGATE_DEMO_RATE", "20")
    command = [str(find_binary()), "demo", "--port", "0", "--json-ready", "--quiet", "--rate", rate]
    log = folder / "demo.log"
    with process(command, log):
        wait_until(lambda: "{" in log.read_text() and "\n" in log.read_text(), 60, "the demo's first line")
        ready = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
        ready["url"] = ready["url"].rstrip("/")
        yield ready


def find_binary() -> Path:
    if named := os.environ.get("NEXUSGATE_BIN"):
        return Path(named)
    target = Path(os.environ.get("CARGO_TARGET_DIR", catalog.ROOT / "target"))
    for profile in ("release", "debug"):
        path = target / profile / "nexusgate"
        if path.exists():
            return path
    raise RuntimeError("there is no nexusgate to start: build it, or set NEXUSGATE_BIN or NEXUSGATE_BASE_URL")
