"""docs/BENCHMARKS.md and its plots."""

import os
import pathlib
import platform
import re
import statistics
import subprocess



def machine():
    def read(path):
        return pathlib.Path(path).read_text() if os.path.exists(path) else ""

    model = re.search(r"model name\s*:\s*(.*)", read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))
    system = re.search(r'PRETTY_NAME="(.*)"', read("/etc/os-release"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain", "src", "Cargo.toml", "Cargo.lock", ".cargo"], capture_output=True, text=True).stdout.strip()
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": f"{os.cpu_count()} × {model[1].strip() if model else platform.machine()}",
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "system": f"{system[1] if system else platform.system()}, Linux {platform.release()}",
        "commit": commit + (" with changes" if dirty else ""),
        "rustc": rustc,
    }


def spread(values, digits=0, scale=1.0):
    """The median, and the range of the repeats."""
    values = [value * scale for value in values if value is not None]
    if not values:
        return "–"
    text = f"{statistics.median(values):,.{digits}f}"
    if len(values) > 1 and max(values) > 0:
        text += f" <sub>{min(values):,.{digits}f}–{max(values):,.{digits}f}</sub>"
    return text.replace(",", " ")


class Figures:
    """Medians over the repeats of one gateway."""

    def __init__(self, runs, direct):
        self.runs, self.direct = runs, direct

    def all(self, *path):
        found = []
        for run in self.runs:
            value = run
            for key in path:
                value = (value or {}).get(key)
            found.append(value)
        return found

    def median(self, *path):
        found = [value for value in self.all(*path) if value is not None]
        return statistics.median(found) if found else None

    def added(self, *path):
        """The addition to a direct call of the provider, repeat by repeat against direct's median."""
        base = self.direct.median(*path) if self.direct else None
        return [value - base for value in self.all(*path) if value is not None] if base is not None else []

    def median_added(self, *path):
        found = self.added(*path)
        return statistics.median(found) if found else None


def figures(data):
    results = data["results"]
    direct = Figures(results["direct"], None) if "direct" in results else None
    return {name: Figures(runs, direct) for name, runs in results.items()}


def tables(data):
    return "\n\n".join(part for part in (comparison(data), targets(data), counts(data)) if part)


def comparison(data):
    head = (
        "| gateway | req/s | core busy | CPU µs/request | database CPU µs/request | p50 / p99 under that load, ms |"
        " added p50 / p99 at 100 req/s, ms | chunks/s | core busy | CPU µs/stream of 50 | added TTFT p50, ms |"
        " RSS idle → highest, MiB | start, s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    rows = [head]
    for name, f in figures(data).items():
        direct = name == "direct"
        latency = " / ".join(
            spread(f.all("rate", "latency_us", q) if direct else f.added("rate", "latency_us", q), 2, 1e-3) for q in ("p50", "p99")
        )
        loaded = " / ".join(spread(f.all("closed", "latency_us", q), 2, 1e-3) for q in ("p50", "p99"))
        first = f.all("first", "first_byte_us", "p50") if direct else f.added("first", "first_byte_us", "p50")
        database = f.all("closed", "database_cpu_us")
        chunks = spread(f.all("streams", "events_per_second"))
        if not any(f.all("streams", "ok")):
            chunks = "every stream was refused"
        rows.append(
            f"| {data['titles'][name]} | {spread(f.all('closed', 'per_second'))} | {percent(f.median('closed', 'busy'))} |"
            f" {'–' if direct else spread(f.all('closed', 'cpu_us'), 1)} |"
            f" {spread(database, 1) if any(database) else '–'} | {loaded} | {latency}{' (itself)' if direct else ''} |"
            f" {chunks} | {percent(f.median('streams', 'busy'))} | {'–' if direct else spread(f.all('streams', 'cpu_us'))} |"
            f" {spread(first, 2, 1e-3)}{' (itself)' if direct else ''} |"
            + (" – | – |" if direct else f" {spread(f.all('rss_idle'), 0, 2**-20)} → {spread(f.all('rss_peak'), 0, 2**-20)} | {spread(f.all('startup_s'), 2)} |")
        )
    return "\n".join(rows)


def percent(share):
    return "–" if share is None else f"{share:.0%}"


def targets(data):
    by_name = figures(data)
    ours, nginx, postgres = by_name.get("nexusgate"), by_name.get("nginx"), by_name.get("nexusgate-pg")
    memory, growth = data.get("memory"), data.get("growth")
    if not ours or not nginx:
        return ""
    rows = ["| target (ratios within this run, beside nginx) | asked | measured | |\n|---|---|---|---|"]

    def row(what, asked, measured, unit, met, digits=2):
        if measured is not None:
            figure = f"{measured:,.{digits}f}".replace(",", " ")
            rows.append(f"| {what} | {asked} | {figure}{unit} | {'met' if met(measured) else '**missed**'} |")

    def ratio(a, b):
        return a / b if a is not None and b else None

    throughput = ratio(ours.median("closed", "per_second"), nginx.median("closed", "per_second"))
    cpu = ratio(ours.median("closed", "cpu_us"), nginx.median("closed", "cpu_us"))
    row("throughput, closed loop, SQLite, request log on", "≥ 0.5 × nginx", throughput, " ×", lambda v: v >= 0.5)
    busy = percent(nginx.median("closed", "busy"))
    row(f"CPU per request beside nginx (counts where the generator bounds the throughput; nginx's core was {busy} busy)", "≤ 2 × nginx", cpu, " ×", lambda v: v <= 2)
    row("CPU per request", "≤ 37 µs", ours.median("closed", "cpu_us"), " µs", lambda v: v <= 37, 1)
    if postgres:
        row("CPU per request with PostgreSQL and Redis, the gateway's own", "≤ 60 µs", postgres.median("closed", "cpu_us"), " µs", lambda v: v <= 60, 1)
    for quantile, most in (("p50", 1.5), ("p99", 1.3)):
        added = ratio(ours.median_added("rate", "latency_us", quantile), nginx.median_added("rate", "latency_us", quantile))
        row(f"added latency {quantile} at 100 requests/s", f"≤ {most} × nginx", added, " ×", lambda v, most=most: v <= most)
    row("streams: chunks per second", "≥ 0.9 × nginx", ratio(ours.median("streams", "events_per_second"), nginx.median("streams", "events_per_second")), " ×", lambda v: v >= 0.9)
    row("streams: CPU for one, beside nginx (the same target where the generator is the bound)", "≤ 1.11 × nginx", ratio(ours.median("streams", "cpu_us"), nginx.median("streams", "cpu_us")), " ×", lambda v: v <= 1 / 0.9)
    row("streams: added time to first token, p50", "≤ 1.5 × nginx", ratio(ours.median_added("first", "first_byte_us", "p50"), nginx.median_added("first", "first_byte_us", "p50")), " ×", lambda v: v <= 1.5)
    row("resident memory, idle", "≤ 30 MiB", ours.median("rss_idle") / 2**20, " MiB", lambda v: v <= 30, 1)
    if memory:
        row(f"resident memory after {memory['requests']:,} requests".replace(",", " "), "≤ 80 MiB (after 1 M)", memory["after"] / 2**20, " MiB", lambda v: v <= 80, 1)
    if growth:
        for size in growth:
            used = "all of them used in turn" if size["in_turn"] else "10 and 1 of them used"
            spread_of = f"{min(size['remaining']):.2f} to {max(size['remaining']):.2f}"
            what = f"throughput with {size['keys']} keys and {size['models']} models, {used}, beside 10 and 1 right before ({spread_of})"
            row(what, "within 5 %", statistics.median(size["remaining"]), " ×", lambda v: v >= 0.95)
    return "\n".join(rows)


def counts(data):
    lines = []
    by_run = {name: [run["counts"] for run in runs] for name, runs in data["results"].items() if "rows" in runs[0]["counts"]}
    if by_run:
        lines.append("| run | generator: answered well | `nexusgate_completions_total{status=\"completed\"}` | rows in the log | `nexusgate_audit_mismatch` |\n|---|---|---|---|---|")
        if memory := data.get("memory"):
            by_run["nexusgate, many requests"] = [memory["counts"]]
        for name, found in by_run.items():
            for number, count in enumerate(found, 1):
                lines.append(f"| {name} {number} | {count['generator']} | {count['completions_total']} | {count['rows']} | {count['audit_mismatch']} |")
    return "\n".join(lines)


def write(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    plots = plot(data, path.parent / "bench")
    where = data["machine"]
    growing = f", {data['growth_s'] / 60:.1f} of them for what grows" if "growth_s" in data else ""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    left_out = "".join(f"\nLeft out: {name}: {why.splitlines()[0]}.\n" for name, why in data["left_out"].items())
    images = "\n".join(f"![{title}](bench/{file})" for title, file in plots)
    path.write_text(f"""# Benchmarks

Written by `{' '.join(['scripts/bench-gateways.sh', *data['arguments']])}` on {data['date']} (it took {data['took_s'] / 60:.1f} minutes{growing}, what it builds and installs not counted); do not edit by hand.
How the figures came about, what was tried and what it brought: [PERFORMANCE.md](PERFORMANCE.md).

* Machine: {where['cpu']}, {where['memory_gib']} GiB, {where['system']}; {where['rustc']}; nexusgate at commit {where['commit']}.
* Versions: {versions}.
* The gateway has core 0; the load generator, the fake provider, PostgreSQL and Redis share core 1.
* One key, one model, one body (about 550 bytes asked, 1 kB answered; streams of 50 content events with a write each).
* Medians of {data['repeats']} interleaved repeats, each with a gateway freshly started; the small figures are the lowest and the highest.
* "Added" is on top of what the same generator sees when it asks the provider directly.
{left_out}
## Side by side

{comparison(data)}

* "Core busy": how much of its core the gateway used while that was measured; well below 100 % something else was the
  bound, the load generator or the databases, which have the other core.
* Who does hardly more than 100 requests/s, or fewer than 40 streams/s (2,080 chunks/s), has a queue at these rates: its latencies
  there are those of the queue.
* Memory is the sum over a gateway's processes; pages that they share are counted for each.
* Closed loop: 32 connections. Fixed rate: 100 requests/s, latencies from the intended send time. Streams: 32 at one time,
  as fast as they come; time to first token at 40 streams/s.
* CPU is that of the gateway's processes alone, user and system, the writing of the request log included, divided by
  the requests answered. nexusgate with SQLite does the database's work itself.
* Release builds of nexusgate are optimised, where it fits, by a profile recorded under use of which this load was a part
  ([PERFORMANCE.md](PERFORMANCE.md#the-recorded-profile)). nginx is Debian's.

{images}

## Targets

{targets(data)}

## Counts

What the load generator counted as answered well, what `/metrics` says and what the request log holds, at the end of each
run; the script stops when they differ.

{counts(data)}

## Again

```sh
scripts/bench-gateways.sh --quick    # under ten minutes
scripts/bench-gateways.sh            # the long form
scripts/bench-gateways.sh --only direct,nginx,nexusgate \\
    --provider-port 9999 --url mine=http://127.0.0.1:4000/v1/chat/completions --pid mine=1234
```
""")


def plot(data, folder):
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    by_name = figures(data)
    made = []
    for file, title, path, added, scale, log in (
        ("throughput.png", "requests per second, closed loop", ("closed", "per_second"), False, 1, True),
        ("cpu.png", "gateway CPU per request, µs", ("closed", "cpu_us"), False, 1, True),
        ("latency.png", "added latency p50 at 100 requests/s, ms", ("rate", "latency_us", "p50"), True, 1e-3, True),
        ("chunks.png", "stream chunks per second", ("streams", "events_per_second"), False, 1, True),
        ("ttft.png", "added time to first token p50, ms", ("first", "first_byte_us", "p50"), True, 1e-3, True),
        ("memory.png", "highest resident memory, MiB", ("rss_peak",), False, 2**-20, True),
    ):
        bars = []
        for name, f in by_name.items():
            if name == "direct" and file not in ("throughput.png", "chunks.png"):
                continue
            values = [value * scale for value in (f.added(*path) if added else f.all(*path)) if value is not None]
            if values and statistics.median(values) > 0:
                bars.append((name, statistics.median(values), min(values), max(values)))
        if not bars:
            continue
        figure, axes = plt.subplots(figsize=(6, 0.45 * len(bars) + 0.9), layout="constrained")
        names = [bar[0] for bar in bars]
        middles = [bar[1] for bar in bars]
        errors = [[bar[1] - bar[2] for bar in bars], [bar[3] - bar[1] for bar in bars]]
        colors = ["#d9480f" if name.startswith("nexusgate") else "#adb5bd" for name in names]
        axes.barh(names, middles, xerr=errors, color=colors, ecolor="#495057", capsize=3)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        if log and max(middles) / min(middles) > 20:
            axes.set_xscale("log")
        figure.savefig(folder / file, dpi=110)
        plt.close(figure)
        made.append((title, file))
    return made
