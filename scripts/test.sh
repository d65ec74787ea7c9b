#!/usr/bin/env bash
# Runs every check and test: formatting, lints, docs, Rust tests on SQLite and on PostgreSQL, Python tests with the
# official SDKs, the monitoring stack. Installs what is missing from Debian and PyPI, starts the servers it needs on
# free ports, and leaves no process behind.
#
#   scripts/test.sh              everything
#   scripts/test.sh rust         only formatting, lints, docs and Rust tests
#   scripts/test.sh python       only the Python tests (builds the binary first)
#   scripts/test.sh monitoring   only the monitoring stack
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
venv=${NEXUSGATE_VENV:-$PWD/.venv}
export NEXUSGATE_VENV=$venv
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
began=$SECONDS

step() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - began)); }

install_debian() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    echo "installing ${missing[*]}"
    scripts/install-debian.sh "${missing[@]}"
}

install_python() {
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/python/requirements.txt
}

check_rust() {
    step "rustfmt"
    cargo fmt --all --check
    step "the recorded profile"
    scripts/pgo/record.sh --check
    step "clippy"
    cargo clippy --workspace --all-targets --quiet -- -D warnings
    step "docs"
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
    step "tests on SQLite; compiles the benches too"
    cargo test --workspace --all-targets --quiet --no-run
    cargo test --workspace --lib --bins --test it
    step "killed processes, stopped databases, a hurt Redis, replicas behind haproxy (about four minutes)"
    cargo test --test resilience -- --nocapture
    # Only the tests of tests/resilience that depend on the kind of the database: the rest would repeat its result.
    step "tests on PostgreSQL"
    scripts/with-postgres.sh cargo test --test it
    scripts/with-postgres.sh cargo test --test resilience -- --nocapture crash:: replicas::
    scripts/with-postgres.sh cargo test --lib store::
}

check_python() {
    step "Python tests"
    cargo build --quiet
    install_python
    "$venv/bin/pytest" -q tests/python --ignore=tests/python/monitoring
}

check_monitoring() {
    [ -x scripts/monitoring/check.sh ] || return 0
    step "monitoring stack"
    cargo build --quiet
    scripts/monitoring/check.sh
}

install_debian gcc libc6-dev python3-venv redis-server postgresql prometheus prometheus-alertmanager nginx-light haproxy
case $what in
    all)
        check_rust
        check_python
        check_monitoring
        ;;
    rust) check_rust ;;
    python) check_python ;;
    monitoring) check_monitoring ;;
    *)
        echo "usage: $0 [all|rust|python|monitoring]" >&2
        exit 2
        ;;
esac
step "all passed"
