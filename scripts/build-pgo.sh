#!/usr/bin/env bash
# Builds the gateway as it should be shipped: target/pgo/nexusgate. The compiler first builds one that counts where it goes,
# that one is used for a minute, and the one that is built then has what is often used together, and what is not far away
# (profile-guided optimisation; docs/PERFORMANCE.md says what it brings). About a quarter of an hour on two cores.
#
# Needs llvm-profdata: of the toolchain (rustup component add llvm-tools) or of Debian (llvm-19), which is installed when there
# is none; and python3. Whatever is left out of the use it is put to, a demo of everything and load on one endpoint, works
# as well as before, and only is not made faster.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
work=$PWD/target/pgo

profdata() {
    local own
    own=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
    if [ -x "$own" ]; then echo "$own"; else compgen -c llvm-profdata | sort -V | tail -1; fi
}
if [ -z "$(profdata)" ]; then
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends llvm-19 >/dev/null
fi

# With a target named, what only runs during the build is built without these flags.
build() {
    echo "== $1"
    RUSTFLAGS=$2 CARGO_TARGET_DIR=$work cargo build --release --locked --quiet --target "$host" --bin nexusgate
}

rm -rf "$work/seen"
build "a gateway that counts where it goes" "-Cprofile-generate=$work/seen"
cargo build --release --locked --quiet --package bench-gateway
echo "== using it"
"$work/$host/release/nexusgate" demo --rate 200 --duration 20s --port 0 --quiet
python3 scripts/bench/use.py "$work/$host/release/nexusgate"
"$(profdata)" merge --output "$work/seen.profdata" "$work/seen"
build "the gateway" "-Cprofile-use=$work/seen.profdata"
ln -f "$work/$host/release/nexusgate" "$work/nexusgate"
git rev-parse HEAD:src >"$work/nexusgate.src" 2>/dev/null || true
echo "target/pgo/nexusgate is built"
