# What tpu_vm.sh and gke.sh share: topologies as `python -m cinema_jax.plan --topology` spells them (v5p:4x4x4), and how
# both say what is wrong. To be sourced.
# shellcheck shell=bash
# shellcheck disable=SC2034  # whoever sources this file uses the variables

# Bad input: one sentence and exit status 2, as the Python commands do.
refuse() {
  echo "error: $1" >&2
  exit 2
}

# The words of a command as one would type them.
quoted() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
  done
  echo "${line# }"
}

# `--some-option=value` as the variable CINEMA_SOME_OPTION; refuses options that are not in the list $2.
set_option() {
  local name=${1%%=*}
  name=${name#--}
  [[ " $2 " == *" $name "* ]] || refuse "unknown option --$name; there are: $2"
  [[ $1 == *=* ]] || refuse "--$name needs a value, as in --$name=VALUE"
  name=CINEMA_$(tr 'a-z-' 'A-Z_' <<<"$name")
  printf -v "$name" '%s' "${1#*=}"
}

# The value of $2, which must match the pattern $3; $4 says what that is.
need() {
  [[ -n $2 ]] || refuse "--$1 is missing; it is $4"
  [[ $2 =~ ^($3)$ ]] || refuse "--$1=$2 is not $4"
}

need_name() {
  need name "$CINEMA_NAME" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
    "a letter, then lower-case letters, digits and -, 40 at most"
}

# Reads a topology ($1) and sets what Google's tools call it:
#   GENERATION SHAPE CHIPS         v5p 4x4x4 64
#   CHIPS_PER_HOST HOSTS           4 16, of one slice
#   ACCELERATOR_TYPE               v5p-128: v4 and v5p count two cores a chip, v5e and v6e count chips
#   ACCELERATOR_FLAGS              of gcloud
#   RUNTIME_VERSION                the VMs' image
#   GKE_ACCELERATOR                the nodes' label
read_topology() {
  local accepted="a generation of v4, v5e, v5p, v6e and the slice's shape, for example v5p:4x4x4 or v6e:4x4"
  need topology "$1" '[^:]+:[1-9][0-9]?(x[1-9][0-9]?){1,2}' "$accepted"
  GENERATION=${1%%:*} SHAPE=${1#*:}
  CHIPS=$((${SHAPE//x/*}))
  CHIPS_PER_HOST=4
  case $GENERATION in
    v4 | v5p)
      _need_solid "$1"
      ACCELERATOR_TYPE=$GENERATION-$((2 * CHIPS))
      ACCELERATOR_FLAGS=("--accelerator-type=$ACCELERATOR_TYPE")
      # It means the most compact shape. Others are named, where gcloud is new enough: of 2025 it has --type=v4 alone.
      [[ " 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24 " == *" $SHAPE "* ]] ||
        ACCELERATOR_FLAGS=("--type=$GENERATION" "--topology=$SHAPE")
      ;;
    v5e | v6e)
      [[ " 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " == *" $SHAPE "* ]] ||
        refuse "--topology=$1: $GENERATION has the shapes 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 and 16x16"
      # Up to eight chips are one host's; larger slices are made of hosts of four.
      if ((CHIPS <= 8)); then CHIPS_PER_HOST=$CHIPS; fi
      ACCELERATOR_TYPE=${GENERATION/v5e/v5litepod}-$CHIPS
      ACCELERATOR_FLAGS=("--accelerator-type=$ACCELERATOR_TYPE")
      ;;
    *) refuse "--topology=$1 is not $accepted" ;;
  esac
  HOSTS=$((CHIPS / CHIPS_PER_HOST))
  case $GENERATION in
    v4) RUNTIME_VERSION=tpu-ubuntu2204-base GKE_ACCELERATOR=tpu-v4-podslice ;;
    v5e) RUNTIME_VERSION=v2-alpha-tpuv5-lite GKE_ACCELERATOR=tpu-v5-lite-podslice ;;
    v5p) RUNTIME_VERSION=v2-alpha-tpuv5 GKE_ACCELERATOR=tpu-v5p-slice ;;
    v6e) RUNTIME_VERSION=v2-alpha-tpuv6e GKE_ACCELERATOR=tpu-v6e-slice ;;
  esac
}

# Slices of chips in three dimensions: parts of a cube of 4x4x4, or whole cubes.
_need_solid() {
  local x y z most=6144
  IFS=x read -r x y z <<<"$SHAPE"
  if [[ $GENERATION == v4 ]]; then most=4096; fi
  [[ " 2x2x1 2x2x2 2x2x4 2x4x4 " == *" $SHAPE "* ]] ||
    { [[ -n $z ]] && ((x % 4 == 0 && y % 4 == 0 && z % 4 == 0 && x <= y && y <= z && CHIPS <= most)); } ||
    refuse "--topology=$1: $GENERATION has the shapes 2x2x1, 2x2x2, 2x2x4, 2x4x4, and AxBxC of multiples of 4 with \
A <= B <= C and at most $most chips"
}

# What all hosts run, checked here: $1 is how many there are, $2 is not empty if their disks may vanish.
check_training() {
  need config "${CINEMA_CONFIG:-}" '.*\.py(:.+)?' "an experiment, for example configs/cogvideox_5b.py"
  [[ -f $ROOT/${CINEMA_CONFIG%%:*} ]] || refuse "--config=$CINEMA_CONFIG: there is no such file in $ROOT"
  [[ -n ${CINEMA_WORKDIR:-} ]] || refuse "--workdir is missing; it is where checkpoints go, for example gs://bucket/run"
  if [[ $CINEMA_WORKDIR != gs://?*/?* ]] && { (($1 > 1)) || [[ -n $2 ]]; }; then
    refuse "--workdir=$CINEMA_WORKDIR: hosts that come and go ($1 here) need a gs://bucket/folder that all reach"
  fi
}

# The command line: options into the CINEMA_ variables that OPTIONS allows, --dry-run into DRY_RUN, and what comes after
# -- into MORE.
read_options() {
  DRY_RUN=
  MORE=()
  while (($# > 0)); do
    case $1 in
      --dry-run) DRY_RUN=yes ;;
      --)
        shift
        MORE=("$@")
        break
        ;;
      *) set_option "$1" "$OPTIONS" ;;
    esac
    shift
  done
}
