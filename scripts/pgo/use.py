"""Puts load on a gateway for the profile of scripts/pgo/record.sh: answers and streams, with everything on."""

import pathlib
import sys
import types

import gateways
from run import Bench


class Watched:
    def stop(self):
        super().stop()
        # It writes its profile only at a normal exit.
        if ended := self.process.child.returncode:
            sys.exit(f"the gateway ended with {ended}")


def main():
    bench = Bench(types.SimpleNamespace(quick=True, lock=None, provider_port=None))
    binary = pathlib.Path(sys.argv[1]).resolve()
    kinds = [type(kind.__name__, (Watched, kind), {"binary": binary}) for kind in (gateways.Nexusgate, gateways.NexusgatePostgres)]
    for why in filter(None, (kind.missing() for kind in kinds)):
        sys.exit(why)
    for kind in kinds:
        bench.check(kind.name, bench.measure(kind))


if __name__ == "__main__":
    main()
