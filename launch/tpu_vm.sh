#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one slice, or several with --node-count. Nothing here has state of its own: every command
# asks Google Cloud what there is, so that it may come from any machine.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/topology.sh
source "$ROOT/launch/topology.sh"

USAGE='usage: launch/tpu_vm.sh COMMAND [OPTIONS] [-- MORE OPTIONS OF cinema_jax.train]

commands
  create   ask for the slice (a queued resource; it costs money from when it is ACTIVE until it is deleted)
  install  copy this checkout, or --git, to all hosts and install it
  check    look at all hosts before they train (cinema_jax.train --check), in about two minutes: exit code 0, or 2 and
           what is wrong with which host
  run      start training on all hosts, in the background
  status   the slice, and what each host does: running, exit CODE, lost or idle
  logs     the end of each host'\''s log (all of them: WORKDIR/logs)
  stop     SIGTERM: training saves a checkpoint and ends
  resume   bring a preempted or stopped run back: delete, create, wait, install, check, run, as needed
  watch    stay, and do so again and again: after a preemption, and after any exit code but 0, 2 and 130; the check
           comes before the first start alone
  delete   give the slice back

options, each with the environment variable that stands for it
  --name=cinema            CINEMA_NAME          of the queued resource and its nodes
  --zone=us-east5-a        CINEMA_ZONE          required
  --project=...            CINEMA_PROJECT       default: that of gcloud
  --topology=v5p:4x4x4     CINEMA_TOPOLOGY      required
  --node-count=1           CINEMA_NODE_COUNT    slices
  --spot=yes               CINEMA_SPOT          yes: cheaper, can be preempted; no: on demand
  --runtime-version=...    CINEMA_RUNTIME_VERSION  default: the one of the generation
  --gcloud="..."           CINEMA_GCLOUD        more flags for create, for example --reserved or --internal-ips
  --ssh="..."              CINEMA_SSH           more flags for ssh and scp, for example --tunnel-through-iap
  --git=URL[@REVISION]     CINEMA_GIT           default: the files of this checkout
  --config=configs/X.py    CINEMA_CONFIG        required
  --workdir=gs://...       CINEMA_WORKDIR       required
  --check=yes              CINEMA_CHECK         no: resume and watch start without it
  --max-restarts=20        CINEMA_MAX_RESTARTS  of watch; preemptions do not count
  --poll=60                CINEMA_POLL          seconds between two looks of watch
  --dry-run                                     print the commands, run nothing; needs no gcloud'

OPTIONS="name zone project topology node-count spot runtime-version gcloud ssh git config workdir check \
max-restarts poll"

# Runs a command, or prints it as one could type it.
step() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

queued() { step gcloud compute tpus queued-resources "$@" "${PLACE[@]}"; }

create() {
  local nodes=("--node-id=$CINEMA_NAME") flags=()
  if ((CINEMA_NODE_COUNT > 1)); then
    nodes=("--node-count=$CINEMA_NODE_COUNT" "--node-prefix=$CINEMA_NAME")
  fi
  if [[ $CINEMA_SPOT == yes ]]; then flags+=(--spot); fi
  # shellcheck disable=SC2206  # several flags in one variable
  flags+=($CINEMA_GCLOUD)
  queued create "$CINEMA_NAME" "${nodes[@]}" "${ACCELERATOR_FLAGS[@]}" "--runtime-version=$CINEMA_RUNTIME_VERSION" \
    ${flags[@]+"${flags[@]}"}
}

delete() { queued delete "$CINEMA_NAME" --force --quiet; }

# What Google Cloud says of the slice, for example ACTIVE; nothing where there is none.
state() { queued list "--filter=name~(^|/)$CINEMA_NAME\$" "--format=value(state.state)"; }

# A command on all hosts of all slices.
on_hosts() { queued ssh "$CINEMA_NAME" "${ALL_HOSTS[@]}" "--command=$1"; }

# What makes a run this one and no other, for worker.sh: workdir, config and options.
this_run() { quoted "$CINEMA_WORKDIR" "--config=$CINEMA_CONFIG" ${MORE[@]+"${MORE[@]}"}; }

# One line a host, also before anything is installed there: of the run $1, or of the newest.
host_states() {
  on_hosts "if [ -f worker.sh ]; then bash worker.sh status${1:+ $1}; else echo CINEMA \$(hostname) idle; fi"
}

install() {
  local files=("$ROOT/launch/worker.sh") source=()
  if [[ -n $CINEMA_GIT ]]; then
    # A revision comes after the last @, which may also stand in the address (git@host:...).
    local revision=${CINEMA_GIT##*@}
    source=("$CINEMA_GIT")
    if [[ $CINEMA_GIT == *@* && $revision != *[:/]* ]]; then source=("${CINEMA_GIT%@*}" "$revision"); fi
  else
    pack_once && files+=("$PACKED") || return 1
  fi
  queued scp "${files[@]}" "$CINEMA_NAME:" "${ALL_HOSTS[@]}" &&
    on_hosts "$(quoted bash worker.sh install ${source[@]+"${source[@]}"})"
}

# Edited files too, but no runs, caches or environments: what git would know of, as far as it is there.
pack() {
  local folder file
  folder=$(mktemp -d) || return 1
  # shellcheck disable=SC2064  # the folder of now
  trap "rm -rf '$folder'" EXIT
  PACKED=$folder/cinema_jax.tar.gz
  git -C "$ROOT" ls-files -coz --exclude-standard >"$folder/known" 2>/dev/null ||
    refuse "$ROOT is not a git checkout, so --git=URL must say where the code is"
  while IFS= read -r -d '' file; do
    if [[ -e $ROOT/$file || -L $ROOT/$file ]]; then printf '%s\0' "$file"; fi
  done <"$folder/known" >"$folder/files"
  step tar -czf "$PACKED" -C "$ROOT" --null -T "$folder/files"
}

# Before anything that costs money; again where the machine has tidied up since.
pack_once() { [[ -n $CINEMA_GIT || -f $PACKED || (-n $DRY_RUN && -n $PACKED) ]] || pack; }

run() { on_hosts "bash worker.sh start $(this_run)"; }

# The same command with one more option, in the background too: gcloud reaches 64 hosts at a time, and all have to meet.
check() {
  on_hosts "bash worker.sh start $(this_run) --check" || return 1
  if [[ -n $DRY_RUN ]]; then
    echo "# until no host is running"
    host_states "$(this_run) --check"
    return
  fi
  local now=running
  while [[ $now == running || $now == wait ]]; do
    sleep "$CINEMA_POLL"
    now=$(verdict "$(this_run) --check")
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) check: $now"
  done
  [[ $now != finished ]] || return 0
  [[ $now != busy ]] || refuse_busy
  on_hosts "bash worker.sh logs 10" || true
  [[ $now != refused ]] || refuse "--check found something wrong, which stands above: the run was not started"
  echo "error: --check did not come to its end: $now" >&2
  return 1
}

status() {
  state
  host_states
}

wait_active() {
  local now=
  while [[ $now != ACTIVE ]]; do
    now=$(state) || now="not to be reached"
    case $now in
      ACTIVE) ;;
      FAILED | SUSPENDED)
        echo "error: the slice is $now before it was ever ACTIVE: launch/tpu_vm.sh status, and the quota, say more" >&2
        return 1
        ;;
      *)
        echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) ${now:-no slice}"
        sleep "$CINEMA_POLL"
        ;;
    esac
  done
}

resume() {
  pack_once || return 1
  if [[ -n $DRY_RUN ]]; then
    echo "# if it is SUSPENDED or FAILED"
    delete
    echo "# if there is none"
    create
    echo "# until it is ACTIVE"
    state
    echo "# then"
  else
    local now
    now=$(state) || return 1
    case $now in
      SUSPENDED | FAILED) delete && create || return 1 ;;
      "") create || return 1 ;;
    esac
    wait_active || return 1
  fi
  install && on_hosts "bash worker.sh stop" || return 1
  if [[ $CINEMA_CHECK == yes ]]; then
    check || return 1
    # Hosts that come later are like these.
    CINEMA_CHECK=no
  fi
  run
}

# What became of the run $1: running, finished, refused, stopped, ended, idle, busy (with another run), gone (preempted),
# or wait.
verdict() {
  local now hosts
  now=$(state) || now=unknown
  case $now in
    ACTIVE) ;;
    "" | SUSPENDED | FAILED) echo gone && return ;;
    *) echo wait && return ;;
  esac
  hosts=$(host_states "$1") || { echo wait && return; }
  hosts=$(sed -n 's/^CINEMA [^ ]* //p' <<<"$hosts")
  if (($(grep -c . <<<"$hosts") < HOSTS * CINEMA_NODE_COUNT)); then
    echo wait
  elif grep -qx busy <<<"$hosts"; then
    echo busy
  # The host that was refused says more than those that then lost it.
  elif grep -qx "exit 2" <<<"$hosts"; then
    echo refused
  elif grep -qx "exit 130" <<<"$hosts"; then
    echo stopped
  elif grep -qx running <<<"$hosts"; then
    echo running
  elif ! grep -qvx "exit 0" <<<"$hosts"; then
    echo finished
  elif grep -qx idle <<<"$hosts"; then
    echo idle
  else
    # 143: told to stop; 1: lost another host; 134 and 137: crashed or killed; lost: started anew.
    echo ended
  fi
}

watch() {
  if [[ -n $DRY_RUN ]]; then
    resume
    echo "# every $CINEMA_POLL s"
    state
    host_states "$(this_run)"
    return
  fi
  pack_once || return 1
  SPENT=0
  local now
  while true; do
    now=$(verdict "$(this_run)")
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $now"
    case $now in
      finished) return 0 ;;
      refused)
        refuse "a host ended with exit code 2, bad input: launch/tpu_vm.sh logs says what it is; once it is mended, \
launch/tpu_vm.sh resume goes on"
        ;;
      busy) refuse_busy ;;
      stopped) refuse "a host was stopped by hand: launch/tpu_vm.sh resume goes on" ;;
      ended) spend && { run || true; } ;;
      # Preemptions come as they come; what counts is a slice that cannot be had or used.
      idle | gone) resume || spend ;;
    esac
    sleep "$CINEMA_POLL"
  done
}

refuse_busy() {
  refuse "the slice is training another run, as launch/tpu_vm.sh status says; launch/tpu_vm.sh stop ends that"
}

spend() {
  ((++SPENT <= CINEMA_MAX_RESTARTS)) && return
  echo "error: --max-restarts=$CINEMA_MAX_RESTARTS are used up; a slice that is still there costs money" >&2
  exit 1
}

# All that can be wrong, before anything costs money.
check_input() {
  need_name
  need zone "$CINEMA_ZONE" '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone, for example us-east5-a"
  need node-count "$CINEMA_NODE_COUNT" '[1-9][0-9]{0,2}' "a number of slices from 1 to 999"
  need spot "$CINEMA_SPOT" 'yes|no' "yes or no"
  need max-restarts "$CINEMA_MAX_RESTARTS" '[0-9]+' "a whole number"
  need poll "$CINEMA_POLL" '[0-9]+' "a whole number of seconds"
  need check "$CINEMA_CHECK" 'yes|no' "yes or no"
  read_topology "$CINEMA_TOPOLOGY"
  CINEMA_RUNTIME_VERSION=${CINEMA_RUNTIME_VERSION:-$RUNTIME_VERSION}
  PLACE=("--zone=$CINEMA_ZONE")
  if [[ -n $CINEMA_PROJECT ]]; then PLACE+=("--project=$CINEMA_PROJECT"); fi
  # shellcheck disable=SC2206
  ALL_HOSTS=(--node=all --worker=all --quiet $CINEMA_SSH)
  case $COMMAND in
    create | check | run | resume | watch) check_training $((HOSTS * CINEMA_NODE_COUNT)) "${CINEMA_SPOT/no/}" ;;
  esac
  if [[ -n $DRY_RUN ]]; then return; fi
  command -v gcloud >/dev/null || refuse "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  [[ -n $(gcloud auth list --filter=status:ACTIVE "--format=value(account)" 2>/dev/null) ]] ||
    refuse "gcloud is not logged in: gcloud auth login"
  [[ -n $CINEMA_PROJECT || -n $(gcloud config get-value project 2>/dev/null) ]] ||
    refuse "--project is missing, and gcloud has no default: gcloud config set project PROJECT"
  if [[ $COMMAND == create || $COMMAND == resume || $COMMAND == watch ]] && [[ $CINEMA_WORKDIR == gs://* ]]; then
    check_bucket
  fi
}

check_bucket() {
  local bucket
  bucket=$(cut -d/ -f1-3 <<<"$CINEMA_WORKDIR")
  gcloud storage buckets describe "$bucket" "--format=value(location)" >/dev/null 2>&1 ||
    refuse "--workdir=$CINEMA_WORKDIR: there is no bucket $bucket, or this account may not see it"
}

COMMAND=${1:-help}
case $COMMAND in
  create | install | check | run | status | logs | stop | resume | watch | delete) shift ;;
  help | --help | -h) echo "$USAGE" && exit ;;
  *) refuse "unknown command $COMMAND; there are create, install, check, run, status, logs, stop, resume, watch, \
delete" ;;
esac
: "${CINEMA_NAME:=cinema}" "${CINEMA_ZONE:=}" "${CINEMA_PROJECT:=}" "${CINEMA_TOPOLOGY:=}" "${CINEMA_NODE_COUNT:=1}"
: "${CINEMA_SPOT:=yes}" "${CINEMA_RUNTIME_VERSION:=}" "${CINEMA_GCLOUD:=}" "${CINEMA_SSH:=}"
: "${CINEMA_GIT:=}" "${CINEMA_CONFIG:=}" "${CINEMA_WORKDIR:=}" "${CINEMA_MAX_RESTARTS:=20}" "${CINEMA_POLL:=60}"
: "${CINEMA_CHECK:=yes}"
PACKED=
read_options "$@"
check_input
case $COMMAND in
  logs | stop) on_hosts "bash worker.sh $COMMAND" ;;
  *) "$COMMAND" ;;
esac
