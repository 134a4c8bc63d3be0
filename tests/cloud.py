"""A cloud and a cluster of folders: stand-ins for gcloud, kubectl, srun and what they bring, for the launchers.

A host is a folder `hosts/<number>`, which is HOME there; gs://BUCKET is the folder `buckets/BUCKET`, which
CINEMA_BUCKETS makes of the hosts' /gcs. Every call is noted in `calls`.
"""

import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

# Google Cloud as the launchers and docs/first_pod_run.md use it, for v5p. A file `preempt` holds a pattern: as soon as
# such a file is there, the slice is taken back, once.
GCLOUD = r"""#!/bin/bash
set -eu
echo "gcloud $*" >>"$CLOUD/calls"
words=()
for word in "${@//gs:\/\//$CINEMA_BUCKETS/}"; do [[ $word == --* ]] || words+=("$word"); done
on_host() {
  cd "$CLOUD/hosts/$1"
  # Where jax finds the others; a TPU VM asks its metadata server.
  local count
  count=$(ls "$CLOUD/hosts" | wc -l)
  if ((count > 1)); then
    export JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT JAX_NUM_PROCESSES=$count JAX_PROCESS_ID=$1
  fi
  HOME=$PWD HOST=host-$1 PATH=$CLOUD/host_bin:$PATH bash -c "$2"
}
# Power off, whatever runs there.
take_back() {
  for pid in "$CLOUD"/hosts/*/cinema_run/pid; do
    if [[ -f $pid ]]; then kill -KILL -- "-$(<"$pid")" 2>/dev/null || true; fi
  done
  rm -rf "$CLOUD/hosts"
}
case "${words[*]:0:5}" in
  "auth list") echo me@example.com ;;
  "config get-value project") echo project ;;
  "storage buckets create "*) mkdir -p "${words[3]}" ;;
  "storage buckets describe "*) [[ -d ${words[3]} ]] ;;
  "storage cp "*) cp -r "${words[@]:2}" ;;
  "storage rsync "*) mkdir -p "${words[3]}" && cp -r "${words[2]}/." "${words[3]}" ;;
  "storage ls "*) ls -d "${words[2]}"/* ;;
  "compute tpus queued-resources create "*)
    for word in "$@"; do if [[ $word == --accelerator-type=v5p-* ]]; then cores=${word##*-}; fi; done
    # Two cores a chip, four chips a host.
    for ((i = 0; i < cores / 8; i++)); do mkdir -p "$CLOUD/hosts/$i"; done
    echo ACTIVE >"$CLOUD/state"
    ;;
  "compute tpus queued-resources delete "*)
    take_back
    rm -f "$CLOUD/state"
    ;;
  "compute tpus queued-resources list")
    if [[ -f $CLOUD/preempt ]] && compgen -G "$(<"$CLOUD/preempt")" >/dev/null; then
      rm "$CLOUD/preempt"
      take_back
      echo SUSPENDED >"$CLOUD/state"
    fi
    if [[ -f $CLOUD/state ]]; then cat "$CLOUD/state"; fi
    ;;
  "compute tpus queued-resources scp "*)
    for home in "$CLOUD"/hosts/*/; do cp "${words[@]:4:${#words[@]}-5}" "$home"; done
    ;;
  "compute tpus queued-resources ssh "*)
    for word in "$@"; do if [[ $word == --command=* ]]; then command=${word#--command=}; fi; done
    for home in "$CLOUD"/hosts/*; do on_host "${home##*/}" "$command" & done
    wait
    ;;
  *) echo "no stand-in for gcloud $*" >&2 && exit 1 ;;
esac
"""
# Only what a host has beside this machine.
ON_HOSTS = {
    "hostname": 'echo "$HOST"',
    "sudo": '"$@"',
    "mountpoint": "[[ -f $HOME/mounted ]]",
    "gcsfuse": 'echo "$*" >"$HOME/mounted"',
    # uv, of which worker.sh wants an environment with a Python.
    "python3": r"""case "$*" in
  *"uv venv"*) folder=${!#} && mkdir -p "$folder/bin" && cp "$CLOUD/host_python" "$folder/bin/python" ;;
esac""",
}
# As srun: the largest exit status of all tasks is its own. TASKS says how many there are.
SRUN = r"""#!/bin/bash
echo "srun $*" >>"$CLOUD/calls"
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < TASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[i]=$!; done
most=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  if ((code > most)); then most=$code; fi
done
exit "$most"
"""
NOTED = 'echo "$(basename "$0") $*" >>"$CLOUD/calls"\n'


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def script(file: Path, text: str) -> None:
    """An executable of bash."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


def make(folder: Path, python: str) -> dict[str, str]:
    """A new cloud in `folder`; returns the environment in which scripts reach it and nothing else.

    Args:
        python: what a host's Python does, as a script of bash.
    """
    script(folder / "bin/gcloud", GCLOUD)
    script(folder / "bin/srun", SRUN)
    for name in ("kubectl", "scontrol", "docker", "tensorboard"):
        script(folder / "bin" / name, NOTED)
    for name, does in ON_HOSTS.items():
        script(folder / "host_bin" / name, does)
    script(folder / "host_python", python)
    kept = {
        name: x for name, x in os.environ.items() if not name.startswith(("CINEMA_", "SLURM_", "JAX_", "PYTHONPATH"))
    }
    return kept | {
        "CLOUD": str(folder),
        "CINEMA_BUCKETS": str(folder / "buckets"),
        "CINEMA_POLL": "0",
        "JAX_PLATFORMS": "cpu",
        "PORT": str(free_port()),
        "TASKS": "1",
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}",
    }


def end(folder: Path) -> None:
    """End what still runs on the hosts."""
    for pid in folder.glob("hosts/*/cinema_run/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def calls(folder: Path) -> list[str]:
    """What was asked of the stand-ins, in order."""
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


def commands(document: Path) -> list[str]:
    """The ```bash blocks of a document, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
