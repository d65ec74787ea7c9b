"""What is started and made for the tests goes away with them, however they end."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLICY = "/usr/sbin/policy-rc.d"

#: A test whose fixture has started a server in a session of its own, as scripts/quick-start.sh does.
TEST = """
import os, pathlib, subprocess, time
import pytest

def said(name):
    return pathlib.Path(name).exists()

@pytest.fixture
def server():
    server = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield server
    pathlib.Path("tears-down").touch()
    while not said("goes-on"):
        time.sleep(0.01)
    server.kill()

def test_it(server):
    pathlib.Path("new").write_text(f"{os.getpid()} {server.pid}")
    os.rename("new", "pids")
    time.sleep(60)
"""


def wait_for(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_tests_that_are_ended_stop_what_they_have_started(tmp_path):
    """As scripts/monitoring/check.sh runs them and ends them: by `timeout`, which sends two signals."""
    below = tmp_path / "tests" / "python" / "monitoring"
    below.mkdir(parents=True)
    shutil.copy(ROOT / "tests/python/conftest.py", below.parent)
    (below / "test_it.py").write_text(TEST)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python/monitoring"]
    command = ["timeout", "60", *run]
    tests = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    pids = []
    try:
        wait_for((tmp_path / "pids").exists, "the test runs")
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        tests.terminate()
        wait_for(lambda: (tmp_path / "tears-down").exists() or not runs(pids[0]), "the tests end")
        if runs(pids[0]):
            os.kill(pids[0], signal.SIGTERM)
        (tmp_path / "goes-on").touch()
        said, _ = tests.communicate(timeout=30)
        assert not runs(pids[1]), said
    finally:
        for pid in filter(runs, pids):
            os.kill(pid, signal.SIGKILL)
        tests.kill()
        tests.communicate()


@pytest.mark.parametrize("was_there", [False, True], ids=["", "was there"])
@pytest.mark.parametrize("ends", ["well", "badly", "killed"])
def test_what_keeps_servers_from_starting_is_removed_by_whom_it_was_made(tmp_path, ends, was_there):
    """scripts/test.sh on a Debian without any of the packages it needs."""
    scripts, policy = tmp_path / "scripts", tmp_path / "policy-rc.d"
    scripts.mkdir()
    for source in ROOT.glob("scripts/*.sh"):
        (scripts / source.name).write_text(source.read_text().replace(POLICY, str(policy)))
        (scripts / source.name).chmod(0o755)
    install = {"well": "exit", "badly": "exit 100", "killed": "exec sleep 60"}[ends]
    programs = {
        "dpkg-query": "exit 1",
        "sudo": 'exec "$@"',
        "apt-get": f'[ "$1" = update ] && exit\ncp "{policy}" "{tmp_path}/seen"\n{install}',
        # The first of what comes after it.
        "cargo": f'touch "{tmp_path}/went-on"\nexit 1',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    if was_there:
        policy.write_text("#!/bin/sh\nexit 0\n")
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    running = subprocess.Popen(
        [scripts / "test.sh", "rust"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        if ends == "killed":
            wait_for((tmp_path / "seen").exists, "apt-get runs")
            os.killpg(running.pid, signal.SIGTERM)
        said, _ = running.communicate(timeout=30)
        assert running.returncode != 0
        assert (tmp_path / "went-on").exists() == (ends == "well"), said
        assert (tmp_path / "seen").read_text() == f"#!/bin/sh\nexit {0 if was_there else 101}\n"
        assert policy.exists() == was_there
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
