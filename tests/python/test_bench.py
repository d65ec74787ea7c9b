"""The benchmark's report, its trace reader, and every script's syntax."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "bench"))

import gateways  # noqa: E402
import oncore  # noqa: E402
import processes  # noqa: E402
import report  # noqa: E402


def test_time_on_the_core_is_that_of_both_stretches_of_a_request():
    def switch(ms, leaves, comes):
        words = f"prev_comm=kworker/0:1 prev_pid={leaves} prev_prio=120 prev_state=S ==> next_comm=n 0:2 next_pid={comes} next_prio=120"
        return f"  swapper  0/0  [000] {ms / 1000:.9f}: sched:sched_switch: {words}"

    # A request (0.2 and 0.1 ms), a timer (0.05 ms), a request (0.3 and 0.4 ms).
    times = [(1, 0, 7), (1.2, 7, 0), (1.3, 0, 7), (1.4, 7, 9), (5, 9, 7), (5.05, 7, 0), (11, 0, 7), (11.3, 7, 0), (11.9, 0, 7), (12.3, 7, 0)]
    found = oncore.stretches("\n".join(switch(*time) for time in times), 7)
    assert oncore.requests(found) == [pytest.approx((200, 100)), pytest.approx((300, 400))]


def run_of(cpu_us, per_second):
    """The figures of one repeat."""
    latency = {"p50": 300.0 + cpu_us, "p99": 500.0 + cpu_us}
    return {
        "closed": {"per_second": per_second, "cpu_us": cpu_us},
        "rate": {"latency_us": latency},
        "streams": {"events_per_second": 100_000.0},
        "first": {"first_byte_us": latency},
        "rss_idle": 20 << 20,
    }


def test_targets_are_judged_beside_nginx():
    results = {"direct": [run_of(0.0, 90_000)], "nginx": [run_of(15.0, 66_000)], "nexusgate": [run_of(38.0, 26_000)]}
    assert "| CPU per request | ≤ 37 µs | 38.0 µs | **missed** |" in report.targets({"results": results})
    assert report.targets({"results": {"nexusgate": results["nexusgate"]}}) == "", "there is nothing to compare with"


def test_each_target_is_judged_by_its_own_figure():
    """Half of nginx's throughput does not make up for three times its CPU, nor vice versa."""
    nginx = {"direct": [run_of(0.0, 90_000)], "nginx": [run_of(15.0, 60_000)]}
    fast = report.targets({"results": {**nginx, "nexusgate": [run_of(45.0, 40_000)]}})
    assert "| 0.67 × | met |" in fast
    assert "| 3.00 × | **missed** |" in fast
    frugal = report.targets({"results": {**nginx, "nexusgate": [run_of(20.0, 20_000)]}})
    assert "| 0.33 × | **missed** |" in frugal
    assert "| 1.33 × | met |" in frugal


def test_growth_is_judged_by_the_median_of_its_pairs():
    results = {"direct": [run_of(0.0, 90_000)], "nginx": [run_of(15.0, 60_000)], "nexusgate": [run_of(30.0, 30_000)]}
    growth = [
        {"keys": 100_000, "models": 1, "in_turn": True, "remaining": [0.70, 0.96, 1.10]},
        {"keys": 10, "models": 200, "in_turn": False, "remaining": [1.02, 0.94, 0.90]},
    ]
    rows = report.targets({"results": results, "growth": growth}).splitlines()[-2:]
    assert "100000 keys and 1 models, all of them used in turn" in rows[0]
    assert "(0.70 to 1.10)" in rows[0] and rows[0].endswith("| 0.96 × | met |")
    assert "(0.90 to 1.02)" in rows[1] and rows[1].endswith("| 0.94 × | **missed** |")


def test_what_nobody_could_measure_is_not_shown_as_nothing():
    """A gateway of --url without its process: no figure, not 0."""
    other = run_of(1.0, 1000)
    other["closed"] = {"per_second": 1000, "latency_us": {"p50": 1.0, "p99": 2.0}}
    other.update(rss_idle=None, rss_peak=None)
    data = {"results": {"direct": [run_of(0.0, 90_000)], "mine": [other]}, "titles": {"direct": "direct", "mine": "mine"}}
    row = next(line for line in report.comparison(data).splitlines() if line.startswith("| mine"))
    assert "| 1 000 | – | – | – |" in row
    assert "– → –" in row


def test_a_program_is_measured_with_its_children_and_nothing_else():
    child = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], start_new_session=True)
    other = subprocess.Popen(["sleep", "60"])
    try:
        running = processes.Running(child.pid)
        deadline = time.monotonic() + 10
        while len(running.pids()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(running.pids()) == 3 and other.pid not in running.pids()
        assert 0 < running.rss() <= running.peak()
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        other.kill()
        child.wait()
        other.wait()


def test_a_process_that_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match="there is no process"):
        processes.Running(2**22 + 1)


#: Starts a provider and a gateway as a measurement does, says so, and waits.
BENCH = """
import os, pathlib, sys, time, types
import gateways, run

run.PROVIDER = pathlib.Path(sys.argv[1])
run.LOAD_CORE = gateways.GATEWAY_CORE = min(os.sched_getaffinity(0))

class Sleeper(gateways.Gateway):
    def start(self):
        self.run(["sleep", "60"])

    def stop(self):
        print("stops", flush=True)
        sys.stdin.readline()
        super().stop()

bench = run.Bench(types.SimpleNamespace(quick=True, lock=None, provider_port=None))
with bench.one(Sleeper) as gateway:
    gateway.start()
    print(gateway.folder, flush=True)
    time.sleep(60)
"""


def test_a_benchmark_that_is_ended_stops_what_it_has_started(tmp_path):
    provider = tmp_path / "provider"
    provider.write_text(
        f"#!{sys.executable}\nimport http.server, sys\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[2])), http.server.BaseHTTPRequestHandler).serve_forever()\n"
    )
    provider.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts" / "bench")}
    pipe = subprocess.PIPE
    bench = subprocess.Popen([sys.executable, "-c", BENCH, provider], env=env, stdin=pipe, stdout=pipe, text=True)
    folder = pathlib.Path(bench.stdout.readline().strip())
    started = [pid for pid in processes.Running(bench.pid).pids() if pid != bench.pid]
    try:
        assert len(started) == 2
        # Twice, as `timeout` does it.
        bench.terminate()
        assert bench.stdout.readline() == "stops\n"
        bench.terminate()
        bench.communicate("\n", timeout=30)
        assert bench.returncode == 128 + signal.SIGTERM
        assert [pid for pid in started if pathlib.Path(f"/proc/{pid}").exists()] == []
        assert not folder.exists()
    finally:
        for pid in (bench.pid, *started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        bench.communicate()


@pytest.mark.parametrize("script", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/**/*.sh")))
def test_scripts_can_be_read_by_their_shell(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True)
