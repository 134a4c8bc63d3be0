"""What each host of a pod must load, read, hold and write, for every shipped config:

    python benchmarks/hosts.py

As `python -m cinema_jax.plan --hosts` says it of the finetune stage, for one sample a chip where the config's own batch
is smaller than the pod; the released networks train on records. Nothing is compiled: the time of a step is what its
products alone take at the chips' peak, so that what hosts must make and read a second is an upper bound.
"""

import dataclasses
import importlib
import os
import tempfile
from pathlib import Path

from absl import app

# Before jax is imported, as in plan.py.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from cinema_jax.config import Config, parse
from cinema_jax.errors import InputError
from cinema_jax.planning import planner
from cinema_jax.planning.hosts import Hosts

CONFIGS = ("cogvideox_2b", "cogvideox_5b", "demo", "demo_ablation")
TOPOLOGIES = (
    ("v5e:4x4", 1),
    ("v5e:16x16", 1),
    ("v5p:2x2x4", 1),
    ("v5p:4x4x4", 1),
    ("v6e:16x16", 1),
    ("v5p:4x4x8", 2),
    ("v4:2x2x4", 1),
)
COLUMNS = (
    *("config", "slices", "mesh", "hosts", "batch", "rows a host", "scattered", "a step", "examples/s", "read MB/s"),
    *("memory", "of", "checkpoint", "a host", "written in"),
)


def config_of(name: str, chips: int) -> Config:
    """A shipped config, at one sample a chip or more."""
    values = importlib.import_module(f"configs.{name}").get_config()
    if name.startswith("cogvideox"):
        values.data.source, values.data.path = "records", "nowhere"
        values.finetune.batch_size, values.finetune.curriculum = max(values.finetune.batch_size, chips), ()
    return parse(values)


def cells(name: str, slices: int, asked: Hosts) -> tuple[str, ...]:
    """A row of the table."""
    loading, memory, storage = asked.loading, asked.memory, asked.storage
    rows = "-".join(dict.fromkeys(map(str, loading.rows)))
    return (
        name,
        f"{slices} x {asked.topology}" if slices > 1 else asked.topology,
        " x ".join(f"{axis} {size}" for axis, size in asked.mesh.items() if size > 1),
        f"{asked.hosts} x {asked.chips_per_host} chips",
        str(asked.batch),
        rows,
        f"{loading.scattered} of {asked.hosts}",
        f"{loading.step_s:.3g} s",
        f"{loading.examples_per_second:.3g}",
        f"{loading.read_mb_per_second:.3g}",
        f"{memory.most_gib:.2f} GiB",
        f"{memory.limit_gib:.0f} GiB",
        f"{storage.total_gib:.2f} GiB",
        f"{storage.checkpoint_gib[1]:.2f} GiB",
        f"{storage.checkpoint_s:.1f} s",
    )


def main(_: list[str]) -> None:
    """Print the table, a row after the other."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in CONFIGS:
        for topology, slices in TOPOLOGIES:
            config = config_of(name, len(planner.devices(topology, slices)))
            mesh = dataclasses.replace(config.mesh, slice=slices)
            with tempfile.TemporaryDirectory() as folder:
                run = planner.Run(dataclasses.replace(config, mesh=mesh), Path(folder))
                try:
                    row = cells(name, slices, planner.plan_hosts(run, "finetune", planner.Target(topology, slices)))
                except InputError as error:
                    row = (name, f"{slices} x {topology}" if slices > 1 else topology, f"refused: {error}")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
