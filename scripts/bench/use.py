"""Puts load on a gateway, for scripts/build-pgo.sh to see where it goes: answers and streams, on SQLite with everything on."""

import pathlib
import sys
import types

import gateways
from run import Bench


def main():
    gateways.Nexusgate.binary = pathlib.Path(sys.argv[1]).resolve()
    bench = Bench(types.SimpleNamespace(quick=True, lock=None))
    figures = bench.measure(gateways.Nexusgate)
    bench.check("nexusgate", figures)


if __name__ == "__main__":
    main()
