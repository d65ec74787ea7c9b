#!/usr/bin/env bash
# Measures LLM gateways side by side on this machine and writes docs/BENCHMARKS.md.
#
#   scripts/bench-gateways.sh --quick      under ten minutes
#   scripts/bench-gateways.sh              about three quarters of an hour
#
# The gateway is pinned to core 0, the load generator and the fake provider (benches/gateway) to core 1, so two cores are
# enough and more do not help. Needs: cargo, python3, taskset; nginx, and for "nexusgate, PostgreSQL + Redis" the servers
# of postgresql and redis-server; npm for Portkey. LiteLLM, Portkey and matplotlib are installed under target/bench.
# What is missing is left out, and the report says so.
#
#   --growth           with --quick: also what grows with the number of keys and models, a minute more
#   --pgo              build nexusgate-pgo first (scripts/build-pgo.sh, a quarter of an hour); built before, it is measured anyway
#   --only NAMES       direct,nginx,nexusgate,nexusgate-pgo,nexusgate-pg,litellm,portkey (comma-separated)
#   --url NAME=URL     a further gateway that is running already: URL of its chat completions; BENCH_KEY is sent as its key
#   --repeats N        interleaved repeats (3)
#   --out FILE         the report (docs/BENCHMARKS.md); plots go to a folder "bench" beside it
#   --binary FILE      measure this nexusgate instead of building one
#   --lock FILE        hold this lock while something is measured: for machines that others use too
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" | sed '$d'; exit 0 ;; esac

work=target/bench
mkdir -p "$work"
if ! [[ " $* " == *" --binary "* ]]; then
    cargo build --release --quiet --bin nexusgate
fi
cargo build --release --quiet --package bench-gateway
[[ " $* " != *" --pgo "* ]] || scripts/build-pgo.sh

# Plots, and the gateways that are Python or Node programs. Pinned, so that two runs measure the same thing.
venv() {
    local folder=$1
    shift
    [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
venv "$work/plots" "matplotlib>=3.9,<4" || echo "no matplotlib: the report has no plots" >&2
only=$(sed -n 's/.*--only[ =]\([^ ]*\).*/\1/p' <<<" $* ")
asked_for() { [ -z "$only" ] || [[ ",$only," == *",$1,"* ]]; }
if asked_for litellm && ! [ -x "$work/litellm/bin/litellm" ]; then
    venv "$work/litellm" "litellm[proxy]" || echo "LiteLLM could not be installed" >&2
fi
if asked_for portkey && ! [ -d "$work/portkey/node_modules/@portkey-ai/gateway" ]; then
    npm install --silent --no-fund --no-audit --prefix "$work/portkey" @portkey-ai/gateway ||
        echo "Portkey could not be installed" >&2
fi

python=python3
[ -x "$work/plots/bin/python" ] && python=$work/plots/bin/python
exec "$python" scripts/bench/run.py "$@"
