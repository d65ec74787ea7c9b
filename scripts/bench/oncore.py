"""Measures, in turns, a gateway's main thread's time on its core per request at a fixed rate, when the caches are cold.

    python3 scripts/bench/oncore.py --turns 5 --seconds 5 before=BINARY after=BINARY -- --rate 100

More precise than a latency: the machine's time to wake a core, and the provider's time, are left out. It separates two
stretches of a request: from the client's bytes to the provider's (and to sleep), and from the answer to the client's.
Needs root, Debian's linux-perf, and the requirements of turns.py.
"""

import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time

from turns import arguments, bench_of_its_own, kinds_of

# The provider answers sooner; the next request comes later.
SAME_REQUEST_US = 2500

SWITCH = re.compile(r"\]\s+([\d.]+): sched:sched_switch: .* prev_pid=(\d+) .* next_pid=(\d+) ")


def stretches(trace, thread):
    """The times of `thread` on a core, in microseconds: pairs of beginning and end."""
    found, since = [], None
    for line in trace.splitlines():
        if not (seen := SWITCH.search(line)):
            continue
        at, leaves, comes = float(seen[1]) * 1e6, int(seen[2]), int(seen[3])
        if comes == thread:
            since = at
        elif leaves == thread and since is not None:
            found.append((since, at))
            since = None
    return found


def requests(found):
    """The lengths of the stretches of each request that took two."""
    pairs, index = [], 0
    while index + 1 < len(found):
        (begun, slept), (woken, done) = found[index : index + 2]
        if woken - slept > SAME_REQUEST_US:
            index += 1
            continue
        pairs.append((slept - begun, done - woken))
        index += 2
    return pairs


def traced(bench, gateway, options):
    thread = gateway.process.pids()[-1]
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "perf.data"
        record = ["perf", "record", "-q", "-k", "CLOCK_MONOTONIC", "-e", "sched:sched_switch", "-a", "-o", data]

        def watch():
            # Work at the beginning is done only once.
            time.sleep(1.5)
            subprocess.run([*record, "--", "sleep", str(options.seconds)], check=True)

        watching = threading.Thread(target=watch)
        watching.start()
        bench.load(gateway, "rate", options.seconds + 1.5, *options.more)
        watching.join()
        shown = ["perf", "script", "-i", data, "--ns", "-F", "comm,pid,tid,cpu,time,event,trace"]
        trace = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    return requests(stretches(trace, thread))


def main():
    options = arguments(__doc__)
    kinds, bench = kinds_of(options), bench_of_its_own()
    found = {name: [] for name in kinds}
    for _ in range(options.turns):
        for name, kind in kinds.items():
            with bench.one(kind) as gateway:
                gateway.start()
                pairs = traced(bench, gateway, options)
            asking, answering = (statistics.median(part) for part in zip(*pairs))
            found[name].append(asking + answering)
            print(f"{name:12} {len(pairs):5} requests  {asking:6.0f} + {answering:.0f} µs", flush=True)
    for name, figures in found.items():
        print(f"{name:12} median {statistics.median(figures):.0f} µs, lowest {min(figures):.0f}")


if __name__ == "__main__":
    main()
