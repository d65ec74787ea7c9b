"""Puts load on a gateway, for scripts/build-pgo.sh to see where it goes: answers and streams, on SQLite with everything on."""

import pathlib
import sys
import types

import gateways
from run import Bench


class Watched(gateways.Nexusgate):
    def stop(self):
        super().stop()
        # What it counted it writes when it ends by itself.
        if ended := self.process.child.returncode:
            sys.exit(f"the gateway ended with {ended}")


def main():
    Watched.binary = pathlib.Path(sys.argv[1]).resolve()
    bench = Bench(types.SimpleNamespace(quick=True, lock=None, provider_port=None))
    bench.check("nexusgate", bench.measure(Watched))


if __name__ == "__main__":
    main()
