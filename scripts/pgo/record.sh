#!/usr/bin/env bash
# Records scripts/pgo/seen.profdata, by which release builds are optimised (rustc.sh): builds a gateway that counts where
# it goes, and puts it to use for two minutes. About ten minutes on two cores.
#
# To be run when dependencies or the compiler have changed, or much of what a request passes through; both files it
# writes are committed (seen.of says what the profile is of). With --check it only compares dependencies and settings.
# The use is `nexusgate demo`, with failures and failovers, and the load of scripts/bench-gateways.sh, on SQLite and on
# PostgreSQL with Redis: chat completions and embeddings, no conversions.
#
# Needs python3, taskset, two cores, PostgreSQL, redis-server, and llvm-profdata in a version that fits the compiler's:
# the toolchain's (rustup component add llvm-tools), or Debian's (llvm-19 fits Rust 1.95), which is installed when there
# is none.
set -euo pipefail
cd "$(dirname "$0")/../.."

# A hash of what the project decides of the functions' names: versions and features of all that is compiled, and the
# settings of the release profile. Cargo's own, which rustc.sh compares, includes the compiler and the target.
dependencies() {
    {
        cargo tree --locked --package nexusgate --edges normal,build --target x86_64-unknown-linux-gnu --prefix none --format '{p} {f}' |
            sed 's/ ([^)]*)//g' | LC_ALL=C sort -u
        sed -n '/^\[profile.release\]/,/^$/p' Cargo.toml
    } | sha256sum | cut -c1-16
}
now=$(dependencies)
if [ "${1:-}" = --check ]; then
    [ "$now" = "$(cut -d' ' -f2 scripts/pgo/seen.of)" ] && exit
    echo "scripts/pgo/seen.profdata is of other dependencies: scripts/pgo/record.sh records a new one" >&2
    exit 1
fi

# Cargo does not see whether a crate was built to count: what there is cannot be used.
work=$PWD/target/pgo
rm -rf "$work"
mkdir -p "$work"
unset CARGO_TARGET_DIR
export RUSTC_WRAPPER=$PWD/scripts/pgo/rustc.sh

# Prints the first llvm-profdata whose output the compiler accepts, tried on a program of one line.
profdata() {
    local try tool host
    host=$(rustc -vV | sed -n 's/^host: //p')
    try=$(mktemp -d)
    echo 'fn main() { println!("{}", std::env::args().count()) }' >"$try/a.rs"
    rustc -O -Cprofile-generate="$try/seen" -o "$try/a" "$try/a.rs"
    "$try/a" >"$try/out"
    for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" $(compgen -c llvm-profdata | sort -rV); do
        if "$tool" merge --output "$try/merged" "$try/seen" && rustc -O -Cprofile-use="$try/merged" -o "$try/b" "$try/a.rs"; then
            echo "$tool"
            break
        fi
    done 2>"$try/errors"
    rm -rf "$try"
}
tool=$(profdata)
if [ -z "$tool" ] && command -v apt-get >/dev/null; then
    scripts/install-debian.sh llvm-19
    tool=$(profdata)
fi
if [ -z "$tool" ]; then
    echo "no llvm-profdata fits $(rustc --version): rustup component add llvm-tools" >&2
    exit 1
fi

echo "== a gateway that counts where it goes"
NEXUSGATE_PGO_RECORD=$work CARGO_TARGET_DIR=$work cargo build --release --locked --quiet --bin nexusgate
built=$work/release/nexusgate
cargo build --release --locked --quiet --package bench-gateway
echo "== using it"
"$built" demo --rate 200 --duration 30s --port 0 --quiet
PYTHONPATH=scripts/bench python3 scripts/pgo/use.py "$built"
# What was never reached is left out: it is built as without a profile, not as rare.
"$tool" merge --sparse --output scripts/pgo/seen.profdata "$work/raw"
names=$(cat "$work/names")
echo "$names $now" >scripts/pgo/seen.of
echo "scripts/pgo/seen.profdata is recorded"
