#!/usr/bin/env bash
# Checks the monitoring stack: dashboards, rules, alerts, configuration files, manifests, quick-start, and an alert from
# end to end. Prints counts, starts the servers it needs on free ports, and leaves no process behind.
#
#   scripts/monitoring/check.sh           everything; about three minutes
#   scripts/monitoring/check.sh static    only what needs no running gateway; half a minute
#
# Needs the gateway's binary ($NEXUSGATE_BIN, else the one cargo built), promtool, amtool, prometheus and
# prometheus-alertmanager. Python packages go to $NEXUSGATE_VENV (.venv).
set -euo pipefail
cd "$(dirname "$0")/../.."

what=${1:-all}
case $what in
    all | static) ;;
    *)
        echo "usage: $0 [all|static]" >&2
        exit 2
        ;;
esac
# A job that hangs is a failure, not a wait.
limit=330
venv=${NEXUSGATE_VENV:-$PWD/.venv}
python=$venv/bin/python
began=$SECONDS

[ -x "$python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/python/requirements.txt \
    -r scripts/monitoring/requirements.txt

for profile in debug release; do
    built=${CARGO_TARGET_DIR:-target}/$profile/nexusgate
    [ -n "${NEXUSGATE_BIN:-}" ] || [ ! -x "$built" ] || NEXUSGATE_BIN=$(realpath "$built")
done
[ -x "${NEXUSGATE_BIN:-}" ] || {
    echo "$0: no nexusgate to check against: cargo build, or set NEXUSGATE_BIN" >&2
    exit 1
}
export NEXUSGATE_BIN

folder=$(mktemp -d "${TMPDIR:-/tmp}/nexusgate-check.XXXXXX")
names=()
declare -A pids
# shellcheck disable=SC2329 # The trap below calls it.
cleanup() {
    status=$?
    trap - EXIT
    # `timeout` passes the signal on to all processes that its command has started.
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait
    # A demo whose checker has ended still adds up its figures, for a second or two.
    for pid in "${pids[@]}"; do
        for _ in $(seq 100); do
            kill -0 -- "-$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background, all at once: most of them wait for a scrape or a rule.
job() { # name, command…
    local name=$1
    shift
    names+=("$name")
    timeout --kill-after=20 $limit "$@" >"$folder/$name.log" 2>&1 &
    pids[$name]=$!
}

"$NEXUSGATE_BIN" metrics-catalog --json >"$folder/catalog.json"
export NEXUSGATE_CATALOG=$folder/catalog.json

if [ "$what" = all ]; then
    job panels "$python" scripts/monitoring/check_panels.py
    job end-to-end "$venv/bin/pytest" -q -rP -p no:cacheprovider tests/python/monitoring
fi
job dashboards "$python" scripts/monitoring/check_dashboards.py
job rules "$python" scripts/monitoring/check_rules.py
job kubernetes "$python" scripts/monitoring/check_kubernetes.py
job configuration "$python" scripts/monitoring/check_config.py
job checkers "$venv/bin/pytest" -q -p no:cacheprovider scripts/monitoring/tests
job promtool promtool test rules monitoring/prometheus/tests/*.test.yml

failed=()
for name in "${names[@]}"; do
    wait "${pids[$name]}" || failed+=("$name")
    unset "pids[$name]"
    sed -e '/^$/d' -e "/^$name: /!s/^/$name: /" "$folder/$name.log"
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "monitoring: FAILED after $((SECONDS - began)) s: ${failed[*]}" >&2
    exit 1
fi
echo "monitoring: all passed in $((SECONDS - began)) s"
