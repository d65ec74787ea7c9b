#!/usr/bin/env bash
# Builds target/pgo/nexusgate by profile-guided optimisation (docs/PERFORMANCE.md): the same gateway, which usually
# needs 3 to 22 % less CPU for a request. The compiler first builds an instrumented gateway, which runs under load for a
# minute; the second build places hot code close together and rare code out of the way. About a quarter of an hour on
# two cores.
#
# The load is that of scripts/bench-gateways.sh and of `nexusgate demo`, with failures and failovers: chat completions
# and embeddings.
#
# Needs python3, taskset, two cores, and llvm-profdata in a version that fits the compiler's: the toolchain's (rustup
# component add llvm-tools), or Debian's (llvm-19 fits Rust 1.95), which is installed when there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

unset CARGO_TARGET_DIR
work=$PWD/target/pgo
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$work"
rm -rf "$work/nexusgate" "$work/nexusgate.source" "$work/seen" "$work/seen.profdata"
source=$(python3 scripts/bench/source.py)

# Prints the first llvm-profdata whose output the compiler accepts, tried on a program of one line.
profdata() {
    local try tool
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
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends llvm-19 >/dev/null
    tool=$(profdata)
fi
if [ -z "$tool" ]; then
    echo "no llvm-profdata fits $(rustc --version): rustup component add llvm-tools" >&2
    exit 1
fi

# With an explicit target, build scripts and macros are built without the flag. The variable accepts flags with spaces.
# It replaces the flags of .cargo/config.toml: a profile knows better what to inline.
build() {
    CARGO_ENCODED_RUSTFLAGS=$1 CARGO_TARGET_DIR=$work cargo build --release --locked --quiet --target "$host" --bin nexusgate
}
built=$work/$host/release/nexusgate

echo "== a gateway that counts where it goes"
build "-Cprofile-generate=$work/seen"
cargo build --release --locked --quiet --package bench-gateway
echo "== using it"
"$built" demo --rate 200 --duration 20s --port 0 --quiet
python3 scripts/bench/use.py "$built"
"$tool" merge --output "$work/seen.profdata" "$work/seen"
echo "== the gateway"
build "-Cprofile-use=$work/seen.profdata"
if [ "$(python3 scripts/bench/source.py)" != "$source" ]; then
    echo "the source changed meanwhile: nobody knows what was built" >&2
    exit 1
fi
ln -f "$built" "$work/nexusgate"
echo "$source" >"$work/nexusgate.source"
echo "target/pgo/nexusgate is built"
