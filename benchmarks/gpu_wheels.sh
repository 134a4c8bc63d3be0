#!/usr/bin/env bash
# Gather what python -m benchmarks.gpu wants beside jax and torch, for a Linux machine without network:
#
#   benchmarks/gpu_wheels.sh FOLDER [PYTHON]
#
# downloads wheels for x86_64 and Python PYTHON (default 3.12) into FOLDER. There, in this repository with FOLDER beside:
#
#   python3 -m pip install --no-index --no-deps --target site FOLDER/*.whl
#   export PYTHONPATH=$PWD/site
#
# PyAV, larger than all others together, is left out (benchmarks/gpu/without_av stands in for it).
set -euo pipefail
folder=${1:?name a folder for the wheels} python=${2:-3.12}
# grain imports array_record and portpicker; the last two are for the comparison.
packages=(
    ml_collections==1.1.0 grain==0.2.18 array_record==0.8.6 portpicker==1.6.0 tensorboardX==2.6.5
    diffusers==0.42.1 'importlib_metadata<9'
)
platforms=()
for version in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
    "${platforms[@]}" --dest "$folder" "${packages[@]}"
du --bytes --total "$folder"/*.whl
