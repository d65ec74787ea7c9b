"""Puts load on a gateway for the profile of scripts/build-pgo.sh: answers and streams, on SQLite with everything on."""

import pathlib
import sys
import types

import gateways
from run import Bench


class Watched(gateways.Nexusgate):
    def stop(self):
        super().stop()
        # It writes its profile only at a normal exit.
        if ended := self.process.child.returncode:
            sys.exit(f"the gateway ended with {ended}")


def main():
    Watched.binary = pathlib.Path(sys.argv[1]).resolve()
    bench = Bench(types.SimpleNamespace(quick=True, lock=None, provider_port=None))
    bench.check("nexusgate", bench.measure(Watched))


if __name__ == "__main__":
    main()
