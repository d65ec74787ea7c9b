#!/bin/sh
# Cargo gives this every command of the compiler (.cargo/config.toml). What is built for release gets the recorded
# profile, seen.profdata: the compiler places code that runs together side by side, and the rest out of the way
# (docs/PERFORMANCE.md). RUSTC_WRAPPER= (set and empty) builds without it, in a target folder of its own: Cargo does not
# see the difference.
#
# With NEXUSGATE_PGO_RECORD=FOLDER it builds a gateway that counts where it goes: for record.sh.
here=${0%/*}
record=${NEXUSGATE_PGO_RECORD:-}

case " $* " in
*" opt-level=3 "*) ;;
*) exec "$@" ;;
esac

# The profile knows functions by names, which contain Cargo's hash of compiler, target, settings and dependencies.
case " $* " in
*" --crate-name nexusgate "*"--crate-type lib --emit="*link*)
    names=$(printf '%s\n' "$@" | sed -n 's/^metadata=//p')
    if [ -n "$record" ]; then
        echo "$names" >"$record/names"
    elif [ "$names" != "$(cut -d' ' -f1 "$here/seen.of")" ]; then
        echo "warning: scripts/pgo/seen.profdata is of other dependencies (as are benches and tests), settings, compiler or target, and brings little here; scripts/pgo/record.sh makes a new one" >&2
    fi
    ;;
esac

if [ -n "$record" ]; then
    exec "$@" -C profile-generate="$record/raw"
fi
# A function that has changed since is compiled as without a profile, and need not be mentioned.
exec "$@" -C profile-use="$here/seen.profdata" -C llvm-args=-no-pgo-warn-mismatch
