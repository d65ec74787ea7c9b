#!/usr/bin/env bash
# Installs Debian's packages without starting their servers: ours want the ports.
#
#   scripts/install-debian.sh PACKAGE…
set -euo pipefail

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
policy=/usr/sbin/policy-rc.d
# One that is there is somebody else's, and stays.
if [ ! -e "$policy" ]; then
    # However this ends: left behind, it would keep every later package from starting its server.
    trap '"${sudo[@]}" rm -f "$policy"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
fi
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
