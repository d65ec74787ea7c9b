#!/usr/bin/env bash
# Runs a command with a PostgreSQL server of its own, and leaves nothing behind.
#
#   scripts/with-postgres.sh cargo test store
#
# The command finds a superuser's URL in NEXUSGATE_TEST_POSTGRES. The server listens on a free port of 127.0.0.1 and on
# a socket in a temporary folder that also holds its data; nothing is synced to disk. PostgreSQL refuses to run as
# root, so root starts it as $PG_TEST_USER (default: postgres, then nobody).
#
# PG_BIN names the folder of the server's programs; if unset, the newest under /usr/lib/postgresql is used.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: $0 COMMAND [ARGUMENT…]" >&2
    exit 2
fi

bin=${PG_BIN:-$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
if [ ! -x "$bin/postgres" ]; then
    echo "$0: no PostgreSQL server found; install postgresql-15 or set PG_BIN" >&2
    exit 1
fi

as_owner=()
folder=$(mktemp -d "${TMPDIR:-/tmp}/nexusgate-pg.XXXXXX")
if [ "$(id -u)" -eq 0 ]; then
    owner=${PG_TEST_USER:-$(id -un postgres 2>/dev/null || echo nobody)}
    chown "$owner" "$folder"
    as_owner=(setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups env HOME="$folder")
fi

# shellcheck disable=SC2329 # The trap below calls it.
cleanup() {
    status=$?
    trap - EXIT
    (cd / && "${as_owner[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate -w stop >/dev/null 2>&1) || true
    rm -rf "$folder"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The owner may lack access to the caller's directory.
owned() { (cd "$folder" && "${as_owner[@]}" "$@"); }

owned "$bin/initdb" -D "$folder/data" -U postgres -A trust -E UTF8 --no-locale --no-sync >"$folder/log" 2>&1 || {
    cat "$folder/log" >&2
    exit 1
}
owned tee -a "$folder/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$folder'
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 400
max_wal_size = 4GB
shared_buffers = 256MB
log_min_messages = fatal
CONF

for _ in 1 2 3 4 5 6 7 8; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 40000))
    if owned "$bin/pg_ctl" -D "$folder/data" -o "-p $port" -l "$folder/data/server.log" -w start >/dev/null 2>&1; then
        export NEXUSGATE_TEST_POSTGRES="postgres://postgres@127.0.0.1:$port/postgres"
        "$@"
        exit
    fi
done
cat "$folder/data/server.log" >&2
exit 1
