#!/usr/bin/env bash
# Trains on TPU slices of the GKE cluster that kubectl talks to: fills launch/gke.yaml and applies it.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/topology.sh
source "$ROOT/launch/topology.sh"

USAGE='usage: launch/gke.sh [OPTIONS] [-- MORE OPTIONS OF cinema_jax.train]

The cluster needs JobSet and a node pool for each slice, of this topology. A run with the same name has to be deleted
first (kubectl delete jobset NAME); with the same workdir the new one goes on where it stopped.

options, each with the environment variable that stands for it
  --name=cinema            CINEMA_NAME
  --namespace=default      CINEMA_NAMESPACE
  --topology=v5p:4x4x4     CINEMA_TOPOLOGY         required
  --node-count=1           CINEMA_NODE_COUNT       slices
  --chips-per-host=4       CINEMA_CHIPS_PER_HOST   v5e:2x4 and v6e:2x4 on two nodes; default: on one of eight chips
  --spot=no                CINEMA_SPOT             yes: only on Spot nodes
  --image=...              CINEMA_IMAGE            required: made with launch/Dockerfile
  --service-account=default  CINEMA_SERVICE_ACCOUNT  of Kubernetes, with access to the bucket
  --config=configs/X.py    CINEMA_CONFIG           required
  --workdir=gs://...       CINEMA_WORKDIR          required
  --check=yes              CINEMA_CHECK            no: train without a look at all hosts at the first start
  --max-restarts=20        CINEMA_MAX_RESTARTS     preemptions count
  --grace-seconds=600      CINEMA_GRACE_SECONDS    from SIGTERM to SIGKILL
  --dry-run                                        print the filled file; needs no kubectl'

OPTIONS="name namespace topology node-count chips-per-host spot image service-account config workdir check \
max-restarts grace-seconds"

check() {
  local label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
  need_name
  need namespace "$CINEMA_NAMESPACE" "$label" "the name of a namespace"
  need service-account "$CINEMA_SERVICE_ACCOUNT" "$label" "the name of a service account of Kubernetes"
  need node-count "$CINEMA_NODE_COUNT" '[1-9][0-9]{0,2}' "a number of slices from 1 to 999"
  need spot "$CINEMA_SPOT" 'yes|no' "yes or no"
  need check "$CINEMA_CHECK" 'yes|no' "yes or no"
  need max-restarts "$CINEMA_MAX_RESTARTS" '[0-9]+' "a whole number"
  need grace-seconds "$CINEMA_GRACE_SECONDS" '[1-9][0-9]*' "a whole number of seconds from 1"
  need image "$CINEMA_IMAGE" '[^[:space:]]+' "an image, for example us-docker.pkg.dev/project/folder/cinema_jax"
  read_topology "$CINEMA_TOPOLOGY"
  if [[ -n $CINEMA_CHIPS_PER_HOST ]]; then
    [[ $SHAPE == 2x4 && $CINEMA_CHIPS_PER_HOST == [48] ]] || [[ $CINEMA_CHIPS_PER_HOST == "$CHIPS_PER_HOST" ]] ||
      refuse "--chips-per-host=$CINEMA_CHIPS_PER_HOST: hosts of $CINEMA_TOPOLOGY have $CHIPS_PER_HOST, and only 2x4 \
has a choice"
    CHIPS_PER_HOST=$CINEMA_CHIPS_PER_HOST
    HOSTS=$((CHIPS / CHIPS_PER_HOST))
  fi
  ((CINEMA_NODE_COUNT == 1 || HOSTS > 1)) ||
    refuse "--node-count=$CINEMA_NODE_COUNT: GKE joins slices of several hosts only, and $CINEMA_TOPOLOGY has one"
  # A pod's own disk goes with it.
  check_training $((HOSTS * CINEMA_NODE_COUNT)) yes
}

# In the container, around the command: at the first start a look at all hosts, whose exit code decides. SIGTERM is for
# training, which saves first. A pod that lost another one ends after it, so that the 2 of that one is seen and decides.
# shellcheck disable=SC2016  # for the other shell
IN_POD='trap "kill -TERM \$child" TERM
run() {
  "$@" & child=$!
  while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
  case $code in 0) return ;; 2 | 143) ;; *) sleep 10 ;; esac
  exit "$code"
}
if [ "$CHECK$RESTART_ATTEMPT" = yes0 ]; then run "$@" --check; fi
run "$@"
'

# gke.yaml without its comments and with its ${...} filled; what is not a number as JSON, which is YAML.
fill() {
  NAME=$CINEMA_NAME NAMESPACE=$CINEMA_NAMESPACE IMAGE=$CINEMA_IMAGE SERVICE_ACCOUNT=$CINEMA_SERVICE_ACCOUNT \
    SLICES=$CINEMA_NODE_COUNT HOSTS=$HOSTS CHIPS_PER_HOST=$CHIPS_PER_HOST SHAPE=$SHAPE ACCELERATOR=$GKE_ACCELERATOR \
    SPOT=$CINEMA_SPOT CHECK=$CINEMA_CHECK MAX_RESTARTS=$CINEMA_MAX_RESTARTS GRACE_SECONDS=$CINEMA_GRACE_SECONDS \
    python3 -c '
import json, os, string, sys
label = "cloud.google.com/gke-"
nodes = {label + "tpu-accelerator": os.environ["ACCELERATOR"], label + "tpu-topology": os.environ["SHAPE"]}
nodes |= {label + "spot": "true"} if os.environ["SPOT"] == "yes" else {}
# Buckets are folders in the pod, and Kubernetes takes $$ for a dollar.
command = [word.replace("gs://", "/gcs/").replace("$", "$$") for word in sys.argv[2:]]
values = {**os.environ, "NODE_SELECTOR": json.dumps(nodes), "COMMAND": json.dumps(command)}
values |= {name: json.dumps(os.environ[name]) for name in ("NAME", "NAMESPACE", "IMAGE", "SERVICE_ACCOUNT")}
lines = [line for line in open(sys.argv[1]) if not line.lstrip().startswith("#")]
print(string.Template("".join(lines)).substitute(values), end="")
' "$ROOT/launch/gke.yaml" sh -c "$IN_POD" sh \
    python -m cinema_jax.train "--config=$CINEMA_CONFIG" "--workdir=$CINEMA_WORKDIR" ${MORE[@]+"${MORE[@]}"}
}

: "${CINEMA_NAME:=cinema}" "${CINEMA_NAMESPACE:=default}" "${CINEMA_TOPOLOGY:=}" "${CINEMA_NODE_COUNT:=1}"
: "${CINEMA_CHIPS_PER_HOST:=}" "${CINEMA_SPOT:=no}" "${CINEMA_IMAGE:=}" "${CINEMA_SERVICE_ACCOUNT:=default}"
: "${CINEMA_CONFIG:=}" "${CINEMA_WORKDIR:=}" "${CINEMA_CHECK:=yes}"
: "${CINEMA_MAX_RESTARTS:=20}" "${CINEMA_GRACE_SECONDS:=600}"
for word in "$@"; do
  case $word in
    --help | -h) echo "$USAGE" && exit ;;
    --) break ;;
  esac
done
read_options "$@"
check
FILLED=$(fill)
if [[ -n $DRY_RUN ]]; then
  echo "$FILLED"
  exit
fi
command -v kubectl >/dev/null || refuse "kubectl is not installed: gcloud components install kubectl"
kubectl get crd jobsets.jobset.x-k8s.io >/dev/null ||
  refuse "kubectl reaches no cluster that has JobSet: https://jobset.sigs.k8s.io/docs/installation"
# The cluster's own checks first.
kubectl apply --dry-run=server --filename=- <<<"$FILLED" >/dev/null
kubectl apply --filename=- <<<"$FILLED"
