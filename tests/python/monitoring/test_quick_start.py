"""scripts/quick-start.sh, unattended and native: a working gateway from nothing, and no change by a second run.

Docker is played by a program that writes down what Compose is told to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
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
import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "monitoring"))

import stack  # noqa: E402

SCRIPT = ROOT / "scripts" / "quick-start.sh"
PORTS = ("PORT", "GRAFANA_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT")
SECRETS = ("ADMIN_SUPER_SECRET", "ENCRYPTION_KEY", "METRICS_BEARER_TOKEN", "POSTGRES_PASSWORD", "REDIS_PASSWORD")
# Variables of the caller's environment that would change the script's behaviour.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"PORT", "DATABASE_URL", "INSTANCE_ID", "METRICS_ADDR", "NEXUSGATE_BASE_URL", *SECRETS}
}


def run(script: Path, *flags: str, check: bool = True, programs: Path | None = None, **environment: str) -> str:
    """What the script says. `programs` is a folder of programs that stand in for those of the machine."""
    path = os.environ["PATH"] if programs is None else f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(script), "--yes", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env={**ENVIRONMENT, "NEXUSGATE_BIN": str(stack.find_binary()), "PATH": path, **environment},
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def settings_of(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@dataclass
class Home:
    """The folder in which quick-start keeps everything."""

    path: Path
    port: int

    def run(self, *flags: str, check: bool = True, programs: Path | None = None) -> str:
        return run(SCRIPT, "--no-docker", "--dir", str(self.path), *flags, check=check, programs=programs)

    def settings(self) -> dict[str, str]:
        return settings_of(self.path)

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
        try:
            home.run("--stop")
            assert [name for name, pid in pids.items() if runs(pid)] == [], "nothing is left running"
        finally:
            for pid in filter(runs, pids.values()):
                os.kill(pid, signal.SIGKILL)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@dataclass
class Docker:
    """Stands in for Docker with Compose."""

    programs: Path

    def heard(self) -> list[tuple[str, ...]]:
        """The projects and commands that it was told since the last call."""
        file = self.programs / "heard"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [re.search(r"^compose (?:-p (\S+) )?.* (up|stop)\b", line).groups() for line in lines]

    def environment(self) -> dict[str, str]:
        lines = (self.programs / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    programs = tmp_path / "programs"
    note = f'echo "$*" >>"{programs}/heard"\nenv >"{programs}/environment"'
    program(programs / "docker", f'case "$*" in "compose version" | info) exit ;; esac\n{note}')
    return Docker(programs)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script in a repository whose .env may be written."""
    path = tmp_path / "repository" / "scripts" / SCRIPT.name
    path.parent.mkdir(parents=True)
    return Path(shutil.copy(SCRIPT, path))


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


def test_compose_leaves_what_the_image_sets() -> None:
    """A variable that Compose passes on although .env has it not is empty in the container, whatever the image says."""
    said = re.search(r"^ENV ((?:.+\\\n)*.+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    image = dict(re.findall(r"(\w+)=(\S+)", said))
    compose = yaml.safe_load((ROOT / "monitoring" / "docker-compose.yaml").read_text())
    passed = compose["services"]["nexusgate"]["environment"]
    assert {"DATABASE_URL", "DATA_DIR", "LOG_FORMAT"} <= image.keys() & passed.keys()
    assert [name for name in image if passed.get(name, "").endswith(":-}")] == []
    assert passed["LOG_FORMAT"] == f"${{LOG_FORMAT:-{image['LOG_FORMAT']}}}"


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


@pytest.mark.parametrize("port", ["3001", "9090", "9093"])
def test_no_port_is_chosen_twice(script: Path, docker: Docker, tmp_path: Path, port: str) -> None:
    run(script, "--dir", str(tmp_path / "home"), "--port", port, programs=docker.programs)
    settings = settings_of(tmp_path / "home")
    assert settings["PORT"] == port
    assert len({settings[name] for name in PORTS}) == len(PORTS), settings


def test_a_gateway_is_not_taken_for_prometheus(home: Home) -> None:
    """With the port of one given to the other, as a person may do it in .env."""
    home.run("--port", str(home.port))
    file = home.path / ".env"
    file.write_text(re.sub("PROMETHEUS_PORT=.*", f"PROMETHEUS_PORT={home.port}", file.read_text()))
    said = home.run("--monitoring", check=False)
    assert "prometheus is ready" not in said
    assert f"port {home.port} is taken; choose another for prometheus with PROMETHEUS_PORT" in said
    assert status_of(f"{home.url()}/readyz") == 200


@pytest.mark.parametrize("name", ["prometheus", "prometheus-alertmanager"])
def test_another_server_is_not_taken_for_one_that_has_ended(home: Home, tmp_path: Path, name: str) -> None:
    """One that has taken the port meanwhile."""
    home.run("--port", str(home.port))
    setting = {"prometheus": "PROMETHEUS_PORT", "prometheus-alertmanager": "ALERTMANAGER_PORT"}[name]
    other = f"{sys.executable} -m http.server --bind 127.0.0.1 {home.settings()[setting]}"
    programs = tmp_path / "programs"
    program(programs / name, f'{other} >/dev/null 2>&1 &\necho $! >"{tmp_path}/other"\necho "it cannot"\nexit 1')
    try:
        said = home.run("--monitoring", check=False, programs=programs)
        short = name.removeprefix("prometheus-")
        assert f"{short} is ready" not in said
        assert f"it cannot\nquick-start: {short} did not start" in said
    finally:
        os.kill(int((tmp_path / "other").read_text()), signal.SIGKILL)


def test_each_directory_is_a_compose_project_of_its_own(script: Path, docker: Docker, tmp_path: Path) -> None:
    def ask(*flags: str, **environment: str) -> list[tuple[str, ...]]:
        run(script, *flags, programs=docker.programs, **environment)
        return docker.heard()

    homes = [str(tmp_path / name) for name in ("one", "another")]
    assert ask() == [("nexusgate", "up")]
    assert ask("--dir", str(script.parents[1])) == [("nexusgate", "up")]
    [(one, _)], [(another, _)] = (ask("--dir", home) for home in homes)
    assert len({one, another, "nexusgate"}) == 3
    assert re.fullmatch(r"nexusgate-\d+", one)

    # What a person types by hand finds the name in .env. Another project's, in the environment, is not ours.
    assert settings_of(tmp_path / "one")["COMPOSE_PROJECT_NAME"] == one
    assert ask("--dir", homes[0], COMPOSE_PROJECT_NAME="theirs") == [(one, "up")]
    # It goes with the directory.
    moved = (tmp_path / "one").rename(tmp_path / "moved")
    assert ask("--dir", str(moved)) == [(one, "up")]

    assert ask("--dir", str(moved), "--stop") == [(one, "stop")]
    assert ask("--dir", str(moved), "--stop") == [], "it is not known who started what has this name now"
    assert ask("--stop") == [("nexusgate", "stop")]
    assert ask("--dir", homes[1], "--stop", "--no-docker") == []
    assert ask("--dir", homes[1], "--stop") == [(another, "stop")]


@pytest.fixture
def old_home(docker: Docker, script: Path, tmp_path: Path) -> Path:
    """With the .env of the script that had one project for all directories, and kept no note of it."""
    folder = tmp_path / "old"
    run(script, "--dir", str(folder), programs=docker.programs)
    file = folder / ".env"
    file.write_text(re.sub("COMPOSE_PROJECT_NAME=.*\n", "", file.read_text()))
    shutil.rmtree(folder / "data")
    docker.heard()
    return folder


def test_a_project_from_before_keeps_its_name(script: Path, docker: Docker, old_home: Path) -> None:
    """Another one would begin with empty volumes."""
    flags = ("--dir", str(old_home))
    run(script, *flags, programs=docker.programs)
    assert docker.heard() == [("nexusgate", "up")]
    said = run(script, *flags, "--stop", programs=docker.programs)
    assert docker.heard() == [("nexusgate", "stop")]
    assert "by hand" not in said


def test_a_project_from_before_is_stopped_by_hand(script: Path, docker: Docker, old_home: Path) -> None:
    """It may be another directory's."""
    by_hand = "stop it by hand: docker compose -p nexusgate stop"
    flags = ("--dir", str(old_home), "--stop")
    assert by_hand in run(script, *flags, programs=docker.programs)
    assert docker.heard() == []
    assert by_hand not in run(script, *flags, "--no-docker", programs=docker.programs)


def test_a_project_that_was_not_started_from_here_is_not_stopped(home: Home, docker: Docker) -> None:
    home.run("--port", str(home.port))
    flags = ("--dir", str(home.path), "--stop")
    said = [run(SCRIPT, *flags, programs=docker.programs) for _ in range(2)]
    assert docker.heard() == []
    assert "stopping nexusgate" in said[0] and "nothing runs" in said[1] and "by hand" not in said[1]


def test_a_project_that_cannot_be_stopped_is_said(script: Path, docker: Docker) -> None:
    run(script, programs=docker.programs)
    program(docker.programs / "docker", "exit 1")
    said = run(script, "--stop", check=False, programs=docker.programs)
    assert "quick-start: nexusgate was started with Docker Compose, which does not work now" in said


def test_compose_takes_passwords_and_ports_from_the_file(script: Path, docker: Docker) -> None:
    """As natively. Compose by itself would take them from the environment."""
    given = dict.fromkeys((*PORTS, *SECRETS, "GRAFANA_ADMIN_PASSWORD"), "7") | {"LOG_FORMAT": "text"}
    run(script, programs=docker.programs, **given)
    assert given.items() & docker.environment().items() == {("LOG_FORMAT", "text")}


def test_an_installation_that_is_killed_leaves_no_policy(home: Home, tmp_path: Path) -> None:
    """On a Debian without Prometheus."""
    policy = tmp_path / "policy-rc.d"
    scripts = tmp_path / "repository" / "scripts"
    shutil.copytree(SCRIPT.parent, scripts, ignore=shutil.ignore_patterns("[!iq]*"))
    shutil.copytree(ROOT / "monitoring", scripts.parent / "monitoring")
    for file in scripts.iterdir():
        file.write_text(file.read_text().replace("/usr/sbin/policy-rc.d", str(policy)))
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for path in Path(folder).glob("*"):
            if not path.name.startswith("prometheus") and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    for name in ("sudo", "apt-get"):
        (programs / name).unlink(missing_ok=True)
    program(programs / "sudo", 'exec "$@"')
    program(programs / "apt-get", f'[ "$1" = update ] && exit\ncp "{policy}" "{tmp_path}/seen"\nexec sleep 60')
    command = [scripts / SCRIPT.name, "--yes", "--no-docker", "--monitoring", "--dir", home.path]
    command += ["--port", str(home.port)]
    environment = {**ENVIRONMENT, "NEXUSGATE_BIN": str(stack.find_binary()), "PATH": str(programs)}
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        stack.wait_until((tmp_path / "seen").exists, 60, "apt-get runs")
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(30)
        stack.wait_until(lambda: not policy.exists(), 10, "the policy is removed")
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@pytest.mark.parametrize("flags", [["--port", "0"], ["--port", "http"], ["--port"], ["--nonsense"]], ids=str)
def test_a_wrong_flag_changes_nothing(tmp_path: Path, flags: list[str]) -> None:
    folder = tmp_path / "home"
    done = subprocess.run(
        [str(SCRIPT), "--yes", "--no-docker", "--dir", str(folder), *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "quick-start: " in done.stderr
    assert not folder.exists()
