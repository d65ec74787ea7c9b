"""Measures builds of nexusgate in turns, and nginx with them: for before and after, on a machine of varying speed.

    python3 scripts/bench/turns.py before=/tmp/nexusgate-before after=target/release/nexusgate
    python3 scripts/bench/turns.py --mode rate --seconds 12 a=… b=… -- --rate 100
    python3 scripts/bench/turns.py --keys 100000 --models 200 before=… after=…     # on SQLite, all used in turn

Needs the programs that scripts/bench-gateways.sh builds (`cargo build --release --package bench-gateway`). Prints a
line for each run, and at the end the median and the lowest of each.
"""

import argparse
import pathlib
import statistics
import sys
import types

import gateways
from run import Bench


def arguments(usage, *further):
    flags = sys.argv[1:]
    more = flags[flags.index("--") + 1 :] if "--" in flags else []
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("builds", nargs="+", metavar="NAME=BINARY")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--mode", choices=["closed", "rate"], default="closed")
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL and Redis instead of SQLite")
    for name in further:
        parser.add_argument(name, type=int, default=1, help="so many, used in turn, with SQLite")
    options = parser.parse_args(flags[: len(flags) - len(more) - bool(more)])
    options.more = more
    return options


def kinds_of(options):
    """nginx and the builds, by name."""
    kinds = {"nginx": gateways.Nginx}
    base = gateways.NexusgatePostgres if options.postgres else gateways.Nexusgate
    for given in options.builds:
        name, _, binary = given.partition("=")
        kinds[name] = type(name, (base,), {"binary": pathlib.Path(binary).resolve()})
        if why := kinds[name].missing():
            sys.exit(f"{name}: {why}")
    return kinds


def bench_of_its_own():
    return Bench(types.SimpleNamespace(quick=True, lock=None, provider_port=None))


def main():
    options = arguments(__doc__, "--keys", "--models")
    if options.postgres and options.keys * options.models > 1:
        sys.exit("--keys and --models are put into a SQLite file")
    kinds = kinds_of(options)
    bench = bench_of_its_own()
    found = {name: [] for name in kinds}
    for _ in range(options.turns):
        for name, kind in kinds.items():
            if options.keys * options.models > 1 and kind is not gateways.Nginx:
                run = bench.grown(kind, options.keys, options.models, True, options.mode, options.seconds, *options.more)
            else:
                with bench.one(kind) as gateway:
                    gateway.start()
                    run = bench.load(gateway, options.mode, options.seconds, *options.more)
            found[name].append(run["cpu_us"])
            latency = run["latency_us"]
            print(f"{name:12} {run['per_second']:8.0f}/s {run['cpu_us']:7.1f} µs CPU  p50 {latency['p50']:.0f} p99 {latency['p99']:.0f} µs", flush=True)
    for name, figures in found.items():
        print(f"{name:12} median {statistics.median(figures):.1f} µs, lowest {min(figures):.1f}")


if __name__ == "__main__":
    main()
