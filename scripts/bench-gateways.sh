#!/usr/bin/env bash
# Measures LLM gateways side by side on this machine and writes docs/BENCHMARKS.md.
#
#   scripts/bench-gateways.sh --quick      under ten minutes
#   scripts/bench-gateways.sh              about forty minutes
#
# The gateway is pinned to core 0, the load generator and the fake provider (benches/gateway) to core 1, so two cores are
# enough and more do not help. Needs: cargo, python3, taskset; nginx, and for "nexusgate, PostgreSQL + Redis" the servers
# of postgresql and redis-server; npm for Portkey. LiteLLM, Portkey and matplotlib are installed under target/bench.
# Missing programs are skipped, and the report says so.
#
#   --growth           with --quick: also the growth with the number of keys and models, four minutes more
#   --only NAMES       direct,nginx,nexusgate,nexusgate-pg,litellm,portkey (comma-separated)
#   --url NAME=URL     a further gateway that already runs: http URL of its chat completions, BENCH_KEY is sent as its key;
#                      its upstream has to be http://127.0.0.1:PORT/v1 of --provider-port, its model "bench"
#   --provider-port PORT   the fake provider's port during measurements
#   --pid NAME=PID     the process of a gateway of --url, for its CPU and memory; pin it to core 0 (taskset -c 0)
#   --repeats N        interleaved repeats (3)
#   --out FILE         the report (docs/BENCHMARKS.md; with --only target/bench/report.md); plots go to "bench" beside it
#   --binary FILE      measure this nexusgate instead of building one
#   --lock FILE        hold this lock during measurements: for shared machines
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" | sed '$d'; exit 0 ;; esac

work=target/bench
mkdir -p "$work"
if ! [[ " $* " == *" --binary "* ]]; then
    cargo build --release --quiet --bin nexusgate
fi
cargo build --release --quiet --package bench-gateway

# Plots, and the gateways that are Python or Node programs: versions of 2026-11, so that two runs measure the same.
venv() {
    local folder=$1
    shift
    [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
venv "$work/plots" "matplotlib==3.11.*" || echo "no matplotlib: the report has no plots" >&2
only=$(sed -n 's/.*--only[ =]\([^ ]*\).*/\1/p' <<<" $* ")
asked_for() { [ -z "$only" ] || [[ ",$only," == *",$1,"* ]]; }
litellm=1.108.7
if asked_for litellm && ! [ -d "$(echo "$work"/litellm/lib/python3*/site-packages/litellm-$litellm.dist-info)" ]; then
    venv "$work/litellm" "litellm[proxy]==$litellm" || echo "LiteLLM could not be installed" >&2
fi
# With npm's choice of @hono/node-server Portkey refuses every stream (Portkey-AI/gateway#1389); this is the version of
# its own lock file.
portkey='{"private": true, "dependencies": {"@portkey-ai/gateway": "1.15.2"}, "overrides": {"@hono/node-server": "1.13.5"}}'
if asked_for portkey && [ "$(cat "$work/portkey/package.json" 2>/dev/null)" != "$portkey" ]; then
    rm -rf "$work/portkey"
    mkdir -p "$work/portkey"
    echo "$portkey" >"$work/portkey/package.json"
    npm install --silent --no-fund --no-audit --prefix "$work/portkey" || {
        rm "$work/portkey/package.json"
        echo "Portkey could not be installed" >&2
    }
fi

python=python3
[ -x "$work/plots/bin/python" ] && python=$work/plots/bin/python
exec "$python" scripts/bench/run.py "$@"
