"""What has to be the same on all hosts of a run, as each host finds it."""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import cinema_jax
from cinema_jax.config import to_dict
from cinema_jax.experiment.run import Run
from cinema_jax.training.phases import every_run

VERSIONS = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Environment variables that change the compiled program, and those among them that say who a process is.
PROGRAM = ("XLA_", "LIBTPU_", "JAX_", "CINEMA_TPU_ATTENTION")
IDENTITY = (
    *("JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"),
    "JAX_COMPILATION_CACHE_DIR",
)


def digest(value: Any) -> str:
    """A short name for anything that JSON can say."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def of_host(run: Run) -> dict[str, Any]:
    """Versions, code, config and devices."""
    return {
        **versions(),
        **_flat(to_dict(run.config), "config"),
        "the number of devices": jax.local_device_count(),
        "the kind of devices": ", ".join(sorted({device.device_kind for device in jax.local_devices()})),
    }


def of_environment() -> dict[str, str]:
    """The environment variables that change compiled programs."""
    return {name: value for name, value in os.environ.items() if name.startswith(PROGRAM) and name not in IDENTITY}


def versions() -> dict[str, str]:
    """Of Python, of the libraries that decide about numbers and files, and of this package's own code."""
    found = {"python": platform.python_version(), "cinema_jax's code": code()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> str:
    """A digest of this package's modules: an edited checkout has the version of the untouched one."""
    folder, result = Path(cinema_jax.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        result.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return result.hexdigest()[:12]


def of_data(run: Run) -> dict[str, Any]:
    """How many examples there are, and a digest of their names in order; raises InputError as opening them does."""
    found: dict[str, Any] = {"the finished stages": [name for name in run.config.stages if run.finished(name)]}
    for bucket in (bucket for one in every_run(run, run.config.stages) for bucket in one.buckets):
        for split in ("train", "validation"):
            source = bucket.source(split)
            name = f"the {split} data{f' of {bucket.records_folder}' if bucket.records_folder else ''}"
            ids = digest([source.id(index) for index in range(len(source))])
            found[name] = f"{len(source)} examples, names {ids}"
    if (captions := run.captions()) is not None:
        found["config.data.captions"] = f"{len(captions)} captions, file {captions.digest}"
    return found


def of_weights(run: Run) -> dict[str, Any]:
    """Where each part's weights lie, and a digest of the names and sizes of their files."""
    found = {}
    for part in ("vae", "t5", "mllm", "aligner", "dit"):
        folder = run.folder(part)
        files = sorted(folder.rglob("*")) if folder else []
        sizes = [[str(file.relative_to(folder)), file.stat().st_size] for file in files if file.is_file()]
        found[f"the weights of {part}"] = f"{folder}, files {digest(sizes)}" if folder else "random"
    return found


def _flat(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {path: leaf for key, item in value.items() for path, leaf in _flat(item, f"{name}.{key}").items()}
