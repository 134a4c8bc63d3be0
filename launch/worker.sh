#!/usr/bin/env bash
# What tpu_vm.sh runs on each TPU VM. It keeps, in ~/cinema_run, the newest run's command, log, process and exit code.
#
#   worker.sh install [URL [REVISION]]   the package from ~/cinema_jax.tar.gz, or from a git repository
#   worker.sh start WORKDIR [OPTIONS]    python -m cinema_jax.train OPTIONS --workdir=WORKDIR, in the background;
#                                        gs://BUCKET/x anywhere in them is /gcs/BUCKET/x, by Cloud Storage FUSE
#   worker.sh status                     one line: CINEMA <host> running | exit <code> | lost | idle (WORKDIR OPTIONS)
#   worker.sh status WORKDIR [OPTIONS]   the same of that run alone: idle where the newest one is another, busy while
#                                        another one goes on
#   worker.sh logs [LINES]               the end of the newest log
#   worker.sh stop                       SIGTERM: training saves and ends with exit code 143
set -euo pipefail

CODE=$HOME/cinema_jax
VENV=$HOME/cinema_venv
RUN=$HOME/cinema_run
BUCKETS=${CINEMA_BUCKETS:-/gcs}

# The images' own Python is older than what jax needs; uv brings one.
install() {
  rm -rf "$CODE"
  if (($# > 0)); then
    git clone --quiet "$1" "$CODE"
    git -C "$CODE" checkout --quiet "${2:-HEAD}"
  else
    mkdir "$CODE"
    tar -xzf "$HOME/cinema_jax.tar.gz" -C "$CODE"
  fi
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --python 3.12 "$VENV"
  python3 -m uv pip install --quiet --python "$VENV/bin/python" -e "${CODE}[tpu]"
}

# All buckets that this host may use, as folders.
mount_buckets() {
  if mountpoint -q "$BUCKETS"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    local apt=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    curl -fsS "$apt/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -qq gcsfuse >/dev/null
  fi
  sudo mkdir -p "$BUCKETS"
  sudo chown "$(id -un)" "$BUCKETS"
  # Checkpoints appear under their name when they are whole: a folder is renamed.
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$BUCKETS" >/dev/null
}

running() { [[ -f $RUN/pid ]] && kill -0 "$(<"$RUN/pid")" 2>/dev/null; }

start() {
  if running; then
    echo "error: $(hostname) is training already; stop it first" >&2
    exit 2
  fi
  if [[ "$*" == *gs://* ]]; then mount_buckets; fi
  mkdir -p "$RUN"
  rm -f "$RUN/exit_code"
  words "$@" >"$RUN/command"
  set -- "${@//gs:\/\//$BUCKETS/}"
  local log
  log=$RUN/$(date -u +%Y%m%dT%H%M%S).log
  ln -sfn "$log" "$RUN/newest.log"
  # A session of its own outlives the connection that started it, and is one group to signal.
  setsid bash "$0" attend "$@" >"$log" 2>&1 </dev/null &
  echo "$!" >"$RUN/pid"
}

# Runs the training, keeps its exit code, and a copy of the log where it outlives a preempted VM's disk.
attend() {
  local workdir=$1 code=0
  shift
  cd "$CODE"
  while sleep 60; do keep_log "$workdir"; done &
  # A signal to the group is for training, which saves first; this shell waits for it.
  trap : TERM
  "$VENV/bin/python" -m cinema_jax.train "$@" --workdir="$workdir" || code=$?
  echo "$code" >"$RUN/exit_code"
  echo "exit code $code"
  kill "$!" 2>/dev/null || true
  keep_log "$workdir"
}

keep_log() {
  if [[ $1 == "$BUCKETS"/* ]]; then
    { mkdir -p "$1/logs/$(hostname)" && cp "$(readlink "$RUN/newest.log")" "$1/logs/$(hostname)/"; } 2>/dev/null || true
  fi
}

# A command in one line that no other command has.
words() { printf '%q ' "$@"; }

status() {
  local state=idle kept=
  if [[ -f $RUN/command ]]; then kept=$(<"$RUN/command"); fi
  if running; then
    state=running
  elif [[ -f $RUN/exit_code ]]; then
    state="exit $(<"$RUN/exit_code")"
  elif [[ -f $RUN/pid ]]; then
    # The VM was started anew, or the training's keeper killed.
    state=lost
  fi
  if (($# == 0)); then
    state+=${kept:+" (${kept% })"}
  elif [[ $kept != "$(words "$@")" ]]; then
    case $state in
      # A look at all hosts belongs to the run that it comes before.
      running) [[ $kept == "$(words "$@" --check)" ]] || state=busy ;;
      *) state=idle ;;
    esac
  fi
  echo "CINEMA $(hostname) $state"
}

logs() { tail -n "${1:-50}" "$RUN/newest.log" | sed "s/^/$(hostname): /"; }

stop() {
  running || return 0
  kill -TERM -- "-$(<"$RUN/pid")"
  while running; do sleep 1; done
}

"$@"
