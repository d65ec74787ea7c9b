"""Runs the benchmark; called by scripts/bench-gateways.sh, which has built and installed the requirements."""

import argparse
import contextlib
import datetime
import fcntl
import functools
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import gateways
import report
from processes import LOAD_CORE, Process, free_port, listens, unwind_when_terminated

LOAD = pathlib.Path("target/release/bench-load").resolve()
PROVIDER = pathlib.Path("target/release/bench-provider").resolve()


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench-gateways.sh")
    parser.add_argument("--quick", action="store_true", help="shorter runs, without the long ones: under ten minutes")
    parser.add_argument("--only", default="", help="names of gateways, comma-separated")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL", help="a further gateway that runs already, with --provider-port as its upstream")
    parser.add_argument("--pid", action="append", default=[], metavar="NAME=PID", help="its process, for its CPU and memory")
    parser.add_argument("--provider-port", type=int, help="where the fake provider listens whenever something is measured (a free port)")
    parser.add_argument("--growth", action="store_true", help="with --quick: also what grows with keys and models, four minutes more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="the report (docs/BENCHMARKS.md; with --only target/bench/report.md)")
    parser.add_argument("--binary", type=pathlib.Path, help="the nexusgate to measure")
    parser.add_argument("--lock", type=pathlib.Path, help="held while something is measured")
    parser.add_argument("--no-report", action="store_true", help="print the figures, write nothing")
    options = parser.parse_args()
    if options.url and not options.provider_port:
        parser.error("--url needs --provider-port: the gateway has to know where its upstream is")
    if not options.out:
        options.out = pathlib.Path("target/bench/report.md" if options.only else "docs/BENCHMARKS.md")
    return options


class Bench:
    def __init__(self, options):
        unwind_when_terminated()
        self.options = options
        quick = options.quick
        self.seconds = {
            "closed": 2.5 if quick else 10,
            "rate": 6 if quick else 30,
            "streams": 2.5 if quick else 10,
            "first": 4 if quick else 20,
            "growth": 4 if quick else 10,
        }

    @contextlib.contextmanager
    def quiet(self):
        """Exclusive use of a shared machine."""
        if not self.options.lock:
            yield
            return
        with open(self.options.lock, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def provider(self, folder, *flags):
        port = self.options.provider_port or free_port()
        process = Process([PROVIDER, "--port", port, *flags], LOAD_CORE, folder / "provider.log")
        try:
            process.wait_for(listens(port))
            yield port
        finally:
            process.stop()

    @contextlib.contextmanager
    def one(self, make):
        """A gateway of this kind, not started yet, in a folder of its own and with a provider; stopped at the end."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="nexusgate-bench-"))
        # PostgreSQL runs as another user.
        folder.chmod(0o755)
        try:
            with self.quiet(), self.provider(folder) as port:
                gateway = make(port, folder)
                try:
                    yield gateway
                finally:
                    gateway.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, gateway, mode, seconds, *flags, warm_up=1.0):
        """One run of the generator; its figures, and the gateway's CPU time for it."""
        before, databases = gateway.cpu(), gateway.database_cpu()
        command = ["taskset", "-c", str(LOAD_CORE), str(LOAD), mode, "--address", gateway.address(), "--path", gateway.path]
        command += ["--seconds", str(seconds), "--warm-up", str(warm_up), *map(str, flags)]
        for header in gateway.headers():
            command += ["--header", header]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(run.stderr)
        found = json.loads(run.stdout)
        # Deferred work (batches of rows) belongs to the requests too.
        time.sleep(0.6)
        if found["ok"] and before is not None:
            found["cpu_us"] = (gateway.cpu() - before) * 1e6 / found["ok"]
            found["database_cpu_us"] = (gateway.database_cpu() - databases) * 1e6 / found["ok"]
            # The gateway's share of its core during the measurement: below 1, something else was the bound.
            found["busy"] = found["cpu_us"] * found["per_second"] / 1e6
        return found

    def measure(self, make):
        """All measurements of one gateway, once, from its start to its end."""
        with self.one(make) as gateway:
            return self.phases(gateway)

    def phases(self, gateway):
        figures = {"startup_s": gateway.start()}
        # A gateway that takes a second or more for a stream gets time for some of them.
        warm_up, longer = (1.5, 2) if gateway.slow else (1.0, 1)
        # The first answer triggers lazy initialisation.
        first = self.load(gateway, "rate", 0.5, "--rate", 10, "--connections", 2, warm_up=0)
        if not first["ok"]:
            raise RuntimeError(f"{gateway.name} does not answer: {first}")
        time.sleep(0.5)
        figures["rss_idle"] = gateway.rss()
        seconds = self.seconds
        figures["closed"] = self.load(gateway, "closed", seconds["closed"] * longer, warm_up=warm_up)
        figures["rate"] = self.load(gateway, "rate", seconds["rate"], "--rate", 100)
        figures["streams"] = self.load(gateway, "closed", seconds["streams"] * longer, "--stream", warm_up=warm_up)
        figures["first"] = self.load(gateway, "rate", seconds["first"], "--rate", 40, "--stream")
        figures["rss_peak"] = gateway.peak()
        own = sum(run["ok"] for run in [first, *(figures[name] for name in ("closed", "rate", "streams", "first"))])
        figures["counts"] = {"generator": own, **gateway.counted()}
        return figures

    def check(self, name, figures):
        """The generator's own count, the gateway's counters and its log must agree."""
        counts = figures["counts"]
        wrong = [key for key in ("completions_total", "rows") if key in counts and counts[key] != counts["generator"]]
        wrong += [key for key in ("audit_mismatch", "other_endings") if counts.get(key)]
        if wrong:
            sys.exit(f"{name}: the counts differ: {counts}")

    def compare(self, kinds):
        results = {name: [] for name, _ in kinds}
        failed = {}
        for repeat in range(self.options.repeats):
            for name, make in kinds:
                if name in failed:
                    continue
                started = time.monotonic()
                try:
                    figures = self.measure(make)
                except RuntimeError as error:
                    failed[name] = str(error)
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                self.check(name, figures)
                results[name].append(figures)
                closed, streams = figures["closed"], figures["streams"]
                print(
                    f"{repeat + 1}/{self.options.repeats} {name:13} {closed['per_second']:8.0f} req/s {closed.get('cpu_us', 0):7.1f} µs CPU"
                    f"  p50 {figures['rate']['latency_us']['p50'] or 0:6.0f} p99 {figures['rate']['latency_us']['p99'] or 0:6.0f} µs"
                    f"  {streams['events_per_second']:8.0f} chunks/s {streams.get('cpu_us', 0):7.0f} µs/stream"
                    f"  TTFT {figures['first']['first_byte_us']['p50'] or 0:6.0f} µs"
                    f"  {(figures['rss_idle'] or 0) / 2**20:5.1f} → {(figures['rss_peak'] or 0) / 2**20:5.1f} MiB  start {figures['startup_s'] or 0:.2f} s"
                    f"  ({time.monotonic() - started:.0f} s)",
                    flush=True,
                )
        return {name: found for name, found in results.items() if found}, failed

    def grown(self, kind, keys, models, in_turn, mode, seconds, *flags):
        """One run with this number of keys and models, using ten keys and one model, or all in turn, each used before."""
        sized = type(kind.__name__, (kind,), {"models": models, "headers": lambda self: []})
        with self.one(sized) as gateway:
            gateway.start()
            further = [f"sk-bench-{n:032x}" for n in range(keys)]
            gateway.add_keys(further)
            file = gateway.folder / "keys"
            file.write_text("\n".join(further if in_turn else further[:10]))
            turns = ["--keys", file, "--models", models if in_turn else 1]
            # The first use creates a key's limits, series, sums and last-seen time (written once a minute): not a cost of
            # each request.
            before = self.load(gateway, "closed", 600, *turns, "--requests", max(keys, models) if in_turn else 10, warm_up=0)
            figures = self.load(gateway, mode, seconds, *turns, *flags)
            figures["counts"] = {"generator": before["ok"] + figures["ok"], **gateway.counted()}
            self.check(kind.__name__, figures)
            return figures

    def growth(self):
        """What remains of the throughput with more keys and more models: of runs right after each other, as the machine's
        own speed changes by the minute."""
        sizes = [(100_000, 1, False), (10, 200, False), (100_000, 1, True), (10, 200, True)]
        found = {size: [] for size in sizes}
        for repeat in range(self.options.repeats):
            for size in sizes:
                few, many = (self.grown(gateways.Nexusgate, *used, "closed", self.seconds["growth"])["per_second"] for used in ((10, 1, True), size))
                found[size].append(many / few)
                print(f"{repeat + 1}/{self.options.repeats} keys, models, in turn {size}: {few:.0f} → {many:.0f} req/s", flush=True)
        return [{"keys": keys, "models": models, "in_turn": in_turn, "remaining": shares} for (keys, models, in_turn), shares in found.items()]

    def memory(self, requests):
        """Resident memory after many requests."""
        with self.one(gateways.Nexusgate) as gateway:
            gateway.start()
            idle = gateway.rss()
            found = self.load(gateway, "closed", 600, "--requests", requests, warm_up=0)
            time.sleep(2)
            counts = {"generator": found["ok"], **gateway.counted()}
            figures = {"requests": found["ok"], "idle": idle, "after": gateway.rss(), "per_second": found["per_second"], "cpu_us": found["cpu_us"], "counts": counts}
            self.check("nexusgate", figures)
            return figures


def main():
    options = arguments()
    started = time.monotonic()
    if options.binary:
        gateways.Nexusgate.binary = options.binary.resolve()
    only = set(filter(None, options.only.split(",")))
    kinds, left_out = [], {}
    for kind in gateways.ALL:
        if only and kind.name not in only:
            continue
        if why := kind.missing():
            left_out[kind.name] = why
        else:
            kinds.append((kind.name, kind))
    pids = {name: int(pid) for name, _, pid in (given.partition("=") for given in options.pid)}
    for given in options.url:
        name, _, url = given.partition("=")
        kinds.append((name, functools.partial(gateways.Other, name, url, pids.get(name))))
    bench = Bench(options)
    results, failed = bench.compare(kinds)
    left_out.update(failed)
    more = {}
    if "nexusgate" in results:
        more["memory"] = bench.memory(1_000_000)
        if options.growth or not options.quick:
            begun = time.monotonic()
            more["growth"] = bench.growth()
            more["growth_s"] = time.monotonic() - begun
    data = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "took_s": time.monotonic() - started,
        "arguments": sys.argv[1:],
        "repeats": options.repeats,
        "machine": report.machine(),
        "versions": {kind.name: kind.version() for kind in gateways.ALL if kind.name in results},
        "titles": {name: getattr(kind, "title", name) for name, kind in kinds},
        "left_out": left_out,
        "results": results,
        **more,
    }
    pathlib.Path("target/bench/last.json").write_text(json.dumps(data, indent=1))
    if options.no_report:
        print(report.tables(data))
    else:
        report.write(data, options.out)
        print(f"{options.out} is written; the figures of every run are in target/bench/last.json")


if __name__ == "__main__":
    main()
