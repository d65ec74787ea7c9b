"""scripts/quick-start.sh, unattended and native: a working gateway from nothing, and no change by a second run."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "monitoring"))

import stack  # noqa: E402

SCRIPT = ROOT / "scripts" / "quick-start.sh"
SECRETS = ("ADMIN_SUPER_SECRET", "ENCRYPTION_KEY", "METRICS_BEARER_TOKEN", "POSTGRES_PASSWORD", "REDIS_PASSWORD")
# Variables of the caller's environment that would change the script's behaviour.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"PORT", "DATABASE_URL", "INSTANCE_ID", "METRICS_ADDR", "NEXUSGATE_BASE_URL", *SECRETS}
}


@dataclass
class Home:
    """The folder in which quick-start keeps everything."""

    path: Path
    port: int

    def run(self, *flags: str, check: bool = True) -> str:
        command = [str(SCRIPT), "--yes", "--no-docker", "--dir", str(self.path), *flags]
        environment = {**ENVIRONMENT, "NEXUSGATE_BIN": str(stack.find_binary())}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def settings(self) -> dict[str, str]:
        lines = (self.path / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings()['PORT']}"

    def pids(self) -> dict[str, int]:
        return {path.stem: int(path.read_text()) for path in (self.path / "data").glob("*.pid")}

    def kept(self) -> dict[str, tuple[int, bytes]]:
        """The files that a second run must not change, with modes and contents; not those the running servers write."""
        data = self.path / "data"
        files = [self.path / ".env", *data.glob("*.pid"), *data.glob("prometheus/*.yml"), *data.glob("prometheus/secrets/*")]
        return {str(path): (path.stat().st_mode, path.read_bytes()) for path in files}


def runs(pid: int) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        # A zombie without other threads has ended: in a container the first process may not reap it.
        is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not is_zombie or len(list((process / "task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path, stack.free_port())
    yield home
    if (tmp_path / ".env").exists():
        pids = home.pids()
        home.run("--stop")
        assert [name for name, pid in pids.items() if runs(pid)] == [], "nothing is left running"


def status_of(url: str, token: str = "") -> int:
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_gateway_from_nothing_and_nothing_new_from_a_second_run(home: Home) -> None:
    said = home.run("--port", str(home.port))
    assert f"http://127.0.0.1:{home.port}" in said
    settings = home.settings()
    assert settings["PORT"] == str(home.port)
    assert stat.S_IMODE((home.path / ".env").stat().st_mode) == 0o600
    assert all(re.fullmatch(r"[0-9a-f]{24,}", settings[name]) for name in SECRETS)
    assert len({settings[name] for name in SECRETS}) == len(SECRETS), "no password is used twice"
    # It prints the passwords' file, not the passwords; and no other program can read them from the command line.
    arguments = Path(f"/proc/{home.pids()['nexusgate']}/cmdline").read_text()
    log = (home.path / "data" / "nexusgate.log").read_text()
    assert not any(settings[name] in text for name in SECRETS for text in (said, arguments, log))

    assert status_of(f"{home.url()}/readyz") == 200
    assert status_of(f"{home.url()}/metrics") == 401
    assert status_of(f"{home.url()}/metrics", settings["METRICS_BEARER_TOKEN"]) == 200
    assert status_of(f"{home.url()}/v1/models", "sk-nobody") == 401

    before = home.kept()
    again = home.run()
    assert "runs already" in again
    assert home.kept() == before
    # Not even when given another port.
    assert "is ignored" in home.run("--port", "1")
    assert home.kept() == before

    # Stopped and started again, it is the same gateway: same passwords, same database.
    home.run("--stop")
    with pytest.raises(urllib.error.URLError):
        status_of(f"{home.url()}/readyz")
    home.run()
    assert home.settings() == settings
    assert status_of(f"{home.url()}/readyz") == 200

    # An added setting is read.
    home.run("--stop")
    with (home.path / ".env").open("a") as file:
        file.write("LOG_FORMAT=json\n")
    written = len((home.path / "data" / "nexusgate.log").read_text())
    home.run()
    first = (home.path / "data" / "nexusgate.log").read_text()[written:].splitlines()[0]
    assert json.loads(first)["level"] == "INFO"


def test_compose_passes_the_settings_on() -> None:
    """All settings that need only a line in .env: no address inside the container, mounted file or build."""
    command = [str(stack.find_binary()), "settings-reference"]
    reference = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = set(re.findall(r"^\| `([A-Z_]+)` \|", reference, re.MULTILINE))
    compose = (ROOT / "monitoring" / "docker-compose.yaml").read_text()
    gateway = compose.partition("\n  postgres:\n")[0]
    passed = set(re.findall(r"^      ([A-Z_]+): ", gateway, re.MULTILINE))
    assert settings - passed == {"COMMIT_SHA", "LISTEN_ADDR", "METRICS_ADDR", "UPSTREAM_CA_FILE"}
    assert passed - settings == {"RUST_LOG"}


def test_what_it_serves_passes_the_metrics_test(home: Home) -> None:
    """The integration test against an instance that it did not start, with a token."""
    home.run("--port", str(home.port))
    environment = {
        **ENVIRONMENT,
        "NEXUSGATE_BASE_URL": home.url(),
        "METRICS_BEARER_TOKEN": home.settings()["METRICS_BEARER_TOKEN"],
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/python/test_metrics.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stdout
    # At least the tests that suit every instance, token included.
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 11, done.stdout


def test_prometheus_and_alertmanager_beside_it(home: Home) -> None:
    said = home.run("--port", str(home.port), "--monitoring")
    settings = home.settings()
    assert settings["MONITORING"] == "yes"
    assert home.pids().keys() == {"nexusgate", "prometheus", "alertmanager"}
    assert f"http://127.0.0.1:{settings['PROMETHEUS_PORT']}" in said
    server = stack.Prometheus(f"http://127.0.0.1:{settings['PROMETHEUS_PORT']}")

    stack.wait_until(lambda: server.scalar('up{job="nexusgate"}') == 1, 60, "a scrape with the token")
    groups = server.api("rules")["groups"]
    assert len(groups) > 5
    wrong = [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]
    assert wrong == []
    stack.wait_until(lambda: bool(server.api("alertmanagers")["activeAlertmanagers"]), 60, "an Alertmanager")
    [manager] = server.api("alertmanagers")["activeAlertmanagers"]
    assert f":{settings['ALERTMANAGER_PORT']}/" in manager["url"]
    receivers = json.loads(stack.get(f"http://127.0.0.1:{settings['ALERTMANAGER_PORT']}/api/v2/receivers"))
    assert {receiver["name"] for receiver in receivers} == {"page", "ticket", "digest"}

    # The choice is stored, and a second run starts nothing twice.
    before = home.kept()
    assert home.run().count("runs already") == 3
    assert home.kept() == before


def test_it_asks_a_person(home: Home) -> None:
    """On a terminal, without --yes: port, monitoring, and a secret that may be one's own."""
    keyboard, terminal = os.openpty()
    command = [str(SCRIPT), "--no-docker", "--dir", str(home.path)]
    environment = {**ENVIRONMENT, "NEXUSGATE_BIN": str(stack.find_binary())}
    os.write(keyboard, f"{home.port}\nn\nmy-own_secret\n".encode())
    done = subprocess.run(
        command, stdin=terminal, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    os.close(keyboard)
    os.close(terminal)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Port of the gateway" in done.stderr
    settings = home.settings()
    assert (settings["PORT"], settings["MONITORING"], settings["ADMIN_SUPER_SECRET"]) == (str(home.port), "no", "my-own_secret")
    assert status_of(f"{home.url()}/readyz") == 200


def test_a_port_that_is_taken_is_said(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.port))
        taken.listen()
        said = home.run("--port", str(home.port), check=False)
    assert f"port {home.port} is taken" in said
    assert home.pids() == {}


@pytest.mark.parametrize("flags", [["--port", "0"], ["--port", "http"], ["--port"], ["--nonsense"]], ids=str)
def test_a_wrong_flag_changes_nothing(tmp_path: Path, flags: list[str]) -> None:
    folder = tmp_path / "home"
    done = subprocess.run(
        [str(SCRIPT), "--yes", "--no-docker", "--dir", str(folder), *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "quick-start: " in done.stderr
    assert not folder.exists()
