#!/usr/bin/env bash
# From a clone to a running gateway. Asks for a port, monitoring and a password, or runs unattended with --yes.
# Uses Docker Compose where it works, else runs natively. A second run changes nothing that exists already.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/quick-start.sh [options]

  --yes, -y          ask nothing; generate passwords, take the defaults
  --port N           port of the gateway (3000)
  --monitoring       also start Prometheus and Alertmanager (and Grafana, with Docker)
  --no-monitoring    do not (the default)
  --no-docker        run natively even where Docker Compose works
  --dir DIR          where .env and data/ are kept (the repository)
  --stop             stop what this script has started from DIR; nothing is deleted
  --help

Settings and passwords go to DIR/.env, once; an existing .env is never changed. Natively, the database, the journal,
logs and pid files are in DIR/data, unless DATABASE_URL and DATA_DIR say otherwise for the first two. With Docker
Compose each DIR is a project of its own: COMPOSE_PROJECT_NAME in its .env, or nexusgate where an old .env has none.
TEXT
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$repo
ask=true
docker_wanted=true
monitoring=""
port=""
stop=false

say() { printf '%s\n' "$*"; }
die() { printf 'quick-start: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --yes | -y) ask=false ;;
    --no-docker) docker_wanted=false ;;
    --monitoring) monitoring=yes ;;
    --no-monitoring) monitoring=no ;;
    --port) [ $# -ge 2 ] || die "--port wants a number"; port=$2; shift ;;
    --port=*) port=${1#*=} ;;
    --dir) [ $# -ge 2 ] || die "--dir wants a directory"; home=$2; shift ;;
    --dir=*) home=${1#*=} ;;
    --stop) stop=true ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; die "no such option: $1" ;;
  esac
  shift
done
[ -t 0 ] || ask=false
if [ -n "$port" ]; then
  [[ $port =~ ^[0-9]+$ ]] && [ "$port" -ge 1 ] && [ "$port" -le 65535 ] || die "--port $port: expected 1 to 65535"
fi
umask 077
mkdir -p "$home"
home=$(cd "$home" && pwd)
env_file=$home/.env
data=$home/data
# What was started with Docker Compose from here: the name of its project.
started_project=$data/compose.project
# A .env from before the name stood there: whatever the directory was, its volumes are this project's.
old_project=nexusgate

# --- small things --------------------------------------------------------------------------------------------------

random_hex() { od -An -tx1 -N"$1" /dev/urandom | tr -d ' \n'; }

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() { # the first free port from $1 on that is none of the others given
  local candidate=$1
  shift
  while port_taken "$candidate" || [[ " $* " == *" $candidate "* ]]; do candidate=$((candidate + 1)); done
  printf '%s' "$candidate"
}

answer() { # question, default
  local reply
  read -r -p "$1 [$2]: " reply || true
  printf '%s' "${reply:-$2}"
}

alive() { # pid file, program: whether the program still runs
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ "$(basename "$(readlink "/proc/$pid/exe" 2>/dev/null)" | sed 's/ (deleted)$//')" = "$2" ]
}

gone() { # pid: whether nothing of it is left but an entry that its parent may not have read yet
  # A program that ends has no exe long before its last thread, which still holds its files and locks, has ended.
  local state threads
  state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 0
  threads=("/proc/$1/task"/*)
  case $state in Z | X) [ "${#threads[@]}" -le 1 ] ;; *) return 1 ;; esac
}

start() { # name, program, command…: in the background, with a log and a pid file
  local name=$1 program=$2
  shift 2
  nohup setsid "$@" >>"$data/$name.log" 2>&1 </dev/null &
  printf '%s\n' "$!" >"$data/$name.pid"
  # Until it has taken the place of nohup and setsid, it does not count as alive.
  for _ in $(seq 50); do
    if alive "$data/$name.pid" "$program" || ! kill -0 "$!" 2>/dev/null; then
      break
    fi
    sleep 0.1
  done
}

stop_one() { # name, program
  local pid
  alive "$data/$1.pid" "$2" || { rm -f "$data/$1.pid"; return 0; }
  pid=$(cat "$data/$1.pid")
  stopped=true
  say "stopping $1 ($pid)"
  kill -TERM "$pid"
  for _ in $(seq 600); do
    gone "$pid" && { rm -f "$data/$1.pid"; return 0; }
    sleep 0.1
  done
  die "$1 ($pid) does not stop"
}

wait_for() { # name, program, command…: until the command succeeds, or the program has ended
  local name=$1 program=$2 deadline=$((SECONDS + 60))
  shift 2
  # The command asks a port, where another program may answer.
  until "$@" >/dev/null 2>&1 && alive "$data/$name.pid" "$program"; do
    alive "$data/$name.pid" "$program" || {
      tail -n 5 "$data/$name.log" >&2
      rm -f "$data/$name.pid"
      die "$name did not start; its log is $data/$name.log"
    }
    [ "$SECONDS" -lt "$deadline" ] || die "$name is not ready after a minute; its log is $data/$name.log"
    sleep 0.2
  done
  say "$name is ready"
}

compose_works() {
  $docker_wanted && docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1
}

own_project() { # a name for the Compose project of a new .env: the repository's is the one of the Compose file
  if [ "$home" -ef "$repo" ]; then
    printf nexusgate
  else
    printf 'nexusgate-%s' "$(printf %s "$home" | cksum | cut -d' ' -f1)"
  fi
}

compose() { # project, command…
  local name project=$1 files=(-f "$repo/monitoring/docker-compose.yaml")
  shift
  if [ "$monitoring" = yes ]; then
    files+=(-f "$repo/monitoring/docker-compose.monitoring.yaml")
  fi
  (
    # Compose would rather take them from the environment; this script tells those of .env.
    for name in $env_only; do
      [ -z "$(from_env "$name")" ] || unset "$name"
    done
    docker compose -p "$project" "${files[@]}" --env-file "$env_file" "$@"
  )
}

# --- .env ----------------------------------------------------------------------------------------------------------

write_env() {
  local admin_secret="" grafana_port prometheus_port alertmanager_port
  if $ask; then
    [ -n "$port" ] || port=$(answer "Port of the gateway" "$(free_port 3000)")
    if [ -z "$monitoring" ]; then
      case $(answer "Prometheus and Alertmanager too? (y/n)" n) in [yY]*) monitoring=yes ;; *) monitoring=no ;; esac
    fi
    admin_secret=$(answer "Secret of the admin API" "generate one")
    [ "$admin_secret" != "generate one" ] || admin_secret=""
    case $admin_secret in *[!A-Za-z0-9._~-]*) die "a secret of letters, digits and . _ ~ - please" ;; esac
  fi
  port=${port:-3000}
  admin_secret=${admin_secret:-$(random_hex 24)}
  grafana_port=$(free_port 3001 "$port")
  prometheus_port=$(free_port 9090 "$port" "$grafana_port")
  alertmanager_port=$(free_port 9093 "$port" "$grafana_port" "$prometheus_port")
  # noclobber: if another run writes the file first, this one fails rather than change the passwords.
  set -o noclobber
  cat >"$env_file" <<TEXT
# Written by scripts/quick-start.sh. It will not change this file; you may, and add settings of docs/SETTINGS.md.
# Natively, relative paths begin at data/; METRICS_ADDR, and a LISTEN_ADDR without 127.0.0.1, are refused.
# Docker Compose ignores $compose_ignores.
PORT=$port
ADMIN_SUPER_SECRET=$admin_secret
ENCRYPTION_KEY=$(random_hex 32)
METRICS_BEARER_TOKEN=$(random_hex 24)
MONITORING=${monitoring:-no}

# With Docker Compose only.
COMPOSE_PROJECT_NAME=$(own_project)
POSTGRES_PASSWORD=$(random_hex 24)
REDIS_PASSWORD=$(random_hex 24)
GRAFANA_ADMIN_PASSWORD=$(random_hex 12)
GRAFANA_PORT=$grafana_port

PROMETHEUS_PORT=$prometheus_port
ALERTMANAGER_PORT=$alertmanager_port
TEXT
  set +o noclobber
  chmod 600 "$env_file"
  say "wrote $env_file"
}

from_env() { # the value of a name in .env, or the default
  local line
  # Text, whatever its encoding.
  line=$(grep -aE "^$1=" "$env_file" | tail -n 1) || true
  line=${line#*=}
  printf '%s' "${line:-${2:-}}"
}

# What is taken from .env alone, whatever the environment has.
env_only="PORT ADMIN_SUPER_SECRET ENCRYPTION_KEY METRICS_BEARER_TOKEN POSTGRES_PASSWORD REDIS_PASSWORD
  GRAFANA_ADMIN_PASSWORD GRAFANA_PORT PROMETHEUS_PORT ALERTMANAGER_PORT"

# Settings that monitoring/docker-compose.yaml sets itself, or that need a change there (a port, a mounted file).
compose_ignores="DATABASE_URL DATA_DIR LISTEN_ADDR METRICS_ADDR NEXUSGATE_CONFIG REDIS_URL UPSTREAM_CA_FILE"

say_what_compose_ignores() {
  local name
  for name in $compose_ignores; do
    [ -z "$(from_env "$name")" ] || say "note: $name in $env_file is ignored: see monitoring/docker-compose.yaml"
  done
}

# --- natively ------------------------------------------------------------------------------------------------------

find_binary() { # prints the path, building it where it is missing
  if [ -n "${NEXUSGATE_BIN:-}" ]; then
    printf '%s' "$NEXUSGATE_BIN"
    return
  fi
  local binary=${CARGO_TARGET_DIR:-$repo/target}/release/nexusgate
  if [ ! -x "$binary" ]; then
    command -v cargo >/dev/null || die "there is neither Docker Compose, nor $binary, nor cargo to build it with"
    say "building $binary (some minutes)" >&2
    (cd "$repo" && cargo build --release --locked --bin nexusgate) >&2 || die "the build failed"
  fi
  printf '%s' "$binary"
}

install_prometheus() { # Debian's packages, where they are missing
  if command -v prometheus >/dev/null && command -v prometheus-alertmanager >/dev/null; then
    return
  fi
  command -v apt-get >/dev/null || die "please install prometheus and alertmanager (there is no apt-get to do it with)"
  say "installing prometheus and prometheus-alertmanager"
  "$repo/scripts/install-debian.sh" prometheus prometheus-alertmanager || die "prometheus cannot be installed"
}

setting() { # the value of a name in the environment, else in .env
  printf '%s' "${!1:-$(from_env "$1")}"
}

refuse_what_breaks() { # settings that would take the gateway away from where this script and its Prometheus look
  [ -z "$(setting METRICS_ADDR)" ] ||
    die "METRICS_ADDR is set: remove it, because /metrics has to stay on PORT, where Prometheus and this script look"
  case $(setting LISTEN_ADDR) in
    "" | 0.0.0.0 | :: | 127.0.0.1) ;;
    *) die "LISTEN_ADDR is set: make it 127.0.0.1, 0.0.0.0 or ::, because this script looks for the gateway there" ;;
  esac
}

start_gateway() {
  local binary=$1
  if alive "$data/nexusgate.pid" "$(basename "$binary")"; then
    say "nexusgate runs already (pid $(cat "$data/nexusgate.pid"))"
    return
  fi
  port_taken "$port" && die "port $port is taken; choose another with PORT in $env_file"
  (
    # In a subshell, so that the secrets are only in the gateway's environment.
    local name
    for name in $("$binary" settings-reference | grep -oE '^[|] .[A-Z_]+' | tr -dc 'A-Z_\n') NEXUSGATE_CONFIG \
      RUST_LOG; do
      [ -n "${!name:-}" ] || [ -z "$(from_env "$name")" ] || export "$name=$(from_env "$name")"
    done
    export PORT=$port INSTANCE_ID="${INSTANCE_ID:-nexusgate-1}"
    export DATABASE_URL="${DATABASE_URL:-sqlite://$data/nexusgate.db}" DATA_DIR="${DATA_DIR:-$data/journal}"
    ADMIN_SUPER_SECRET=$(from_env ADMIN_SUPER_SECRET)
    ENCRYPTION_KEY=$(from_env ENCRYPTION_KEY)
    METRICS_BEARER_TOKEN=$(from_env METRICS_BEARER_TOKEN)
    export ADMIN_SUPER_SECRET ENCRYPTION_KEY METRICS_BEARER_TOKEN
    cd "$data"
    start nexusgate "$(basename "$binary")" "$binary" serve
  )
  wait_for nexusgate "$(basename "$binary")" "$binary" healthcheck --url "http://127.0.0.1:$port"
}

start_beside() { # name, program, its port, the port's setting, command…
  local name=$1 program=$2 its_port=$3 setting=$4
  shift 4
  if alive "$data/$name.pid" "$program"; then
    say "$name runs already (pid $(cat "$data/$name.pid"))"
    return
  fi
  port_taken "$its_port" && die "port $its_port is taken; choose another for $name with $setting in $env_file"
  start "$name" "$program" "$@"
}

start_prometheus() {
  local prometheus_port=$1 alertmanager_port=$2 folder=$data/prometheus
  install_prometheus
  mkdir -p "$folder/secrets" "$data/alertmanager"
  printf %s "$(from_env METRICS_BEARER_TOKEN)" >"$folder/secrets/metrics_token"
  ln -sfn "$repo/monitoring/prometheus/rules" "$folder/rules"
  ln -sfn "$repo/monitoring/prometheus/targets" "$folder/targets"
  sed -e "s/nexusgate:3000/127.0.0.1:$port/" \
    -e "s/alertmanager:9093/127.0.0.1:$alertmanager_port/" \
    -e "s/localhost:9090/127.0.0.1:$prometheus_port/" \
    "$repo/monitoring/prometheus/prometheus.yml" >"$folder/prometheus.yml"
  start_beside alertmanager prometheus-alertmanager "$alertmanager_port" ALERTMANAGER_PORT prometheus-alertmanager \
    --config.file="$repo/monitoring/alertmanager/alertmanager.yml" --storage.path="$data/alertmanager" \
    --web.listen-address="127.0.0.1:$alertmanager_port" --cluster.listen-address=
  start_beside prometheus prometheus "$prometheus_port" PROMETHEUS_PORT prometheus \
    --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" --storage.tsdb.retention.time=45d \
    --web.listen-address="127.0.0.1:$prometheus_port"
  wait_for alertmanager prometheus-alertmanager port_taken "$alertmanager_port"
  wait_for prometheus prometheus port_taken "$prometheus_port"
}

# --- the work ------------------------------------------------------------------------------------------------------

if $stop; then
  [ -f "$env_file" ] || die "nothing was started from $home"
  monitoring=yes
  stopped=false
  binary_name=$(basename "${NEXUSGATE_BIN:-nexusgate}")
  stop_one prometheus prometheus
  stop_one alertmanager prometheus-alertmanager
  stop_one nexusgate "$binary_name"
  # Only a project that was started from here: it may as well be another directory's, or one started by hand.
  if $docker_wanted && [ -f "$started_project" ]; then
    compose_works || die "$(cat "$started_project") was started with Docker Compose, which does not work now"
    compose "$(cat "$started_project")" stop
    rm -f "$started_project"
    stopped=true
  fi
  if ! $stopped; then
    say "nothing runs that this script has started from $home"
    # A script from before it kept a note may have started a stack; so may one in another directory, with this name.
    if $docker_wanted && [ -z "$(from_env COMPOSE_PROJECT_NAME)" ]; then
      say "if an older version started it with Docker Compose, stop it by hand: docker compose -p $old_project stop"
    fi
  fi
  exit 0
fi

if [ -f "$env_file" ]; then
  say "using $env_file"
  asked_port=$port
  port=$(from_env PORT 3000)
  if [ -n "$asked_port" ] && [ "$asked_port" != "$port" ]; then
    say "note: PORT is $port in $env_file, so --port $asked_port is ignored"
  fi
  monitoring=${monitoring:-$(from_env MONITORING no)}
else
  write_env
fi

if compose_works; then
  say_what_compose_ignores
  project=$(from_env COMPOSE_PROJECT_NAME "$old_project")
  mkdir -p "$data"
  printf '%s\n' "$project" >"$started_project"
  compose "$project" up --detach --build --wait
  how="docker compose -p $project -f monitoring/docker-compose.yaml --env-file $env_file logs -f nexusgate"
else
  refuse_what_breaks
  mkdir -p "$data"
  binary=$(find_binary)
  start_gateway "$binary"
  [ "$monitoring" != yes ] || start_prometheus "$(from_env PROMETHEUS_PORT 9090)" "$(from_env ALERTMANAGER_PORT 9093)"
  how="tail -f $data/nexusgate.log"
fi

say ""
say "The gateway:    http://127.0.0.1:$port            (API docs: /api/docs, health: /readyz)"
say "Metrics:        http://127.0.0.1:$port/metrics    (Bearer METRICS_BEARER_TOKEN)"
if [ "$monitoring" = yes ]; then
  say "Prometheus:     http://127.0.0.1:$(from_env PROMETHEUS_PORT 9090)"
  say "Alertmanager:   http://127.0.0.1:$(from_env ALERTMANAGER_PORT 9093)"
  if compose_works; then
    say "Grafana:        http://127.0.0.1:$(from_env GRAFANA_PORT 3001)    (admin, GRAFANA_ADMIN_PASSWORD)"
  fi
fi
say "Passwords:      $env_file"
say "Log:            $how"
stop="scripts/quick-start.sh --stop"
[ "$home" = "$repo" ] || stop="$stop --dir $home"
say "Stop:           $stop"
say ""
say "Next: make a provider, a model and a key with the admin API (Bearer ADMIN_SUPER_SECRET; see the API docs)."
