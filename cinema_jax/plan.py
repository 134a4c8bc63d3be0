"""Plan: `python -m cinema_jax.plan --config=configs/cogvideox_5b.py --topology=v5p:4x4x4`.

Compiles the config's real train step for chips that are not at hand, and says whether it fits, what the chips send to
each other, what bounds its speed, and what it asks of the hosts: rows, reading, memory, checkpoints. `train` refuses a
mesh in the same words. Needs libtpu (`pip install libtpu`) and no TPU; neither weights nor data are read.

The exit status is 0 if all that was planned fits, and 2 if something does not, or is refused.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cinema_jax import command
from cinema_jax.config import parse
from cinema_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "An experiment of configs/, for example configs/cogvideox_5b.py."
)
TOPOLOGY = flags.DEFINE_string("topology", None, "Generation and chips, for example v5p:4x4x4, v6e:8x8 or v5e:4x4.")
STAGE = flags.DEFINE_string("stage", "finetune", "Which stage's step: pretrain, align or finetune.")
SAMPLER = flags.DEFINE_bool("sampler", False, "Plan the sampling of one video instead of a train step.")
SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Compile for up to four meshes, the most sharded one among them, with one remat preset after the other until one "
    "fits: at most 16 programs; rank those that fit.",
)
SLICES = flags.DEFINE_integer(
    "slices", 0, "How many such slices there are; 0: what config.mesh.slice says, or one.", lower_bound=0
)
BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 1.0, "Between a host and disk or bucket, in GB (10^9 bytes) a second.", lower_bound=1e-6
)
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
HOSTS = flags.DEFINE_bool("hosts", False, "Print what is asked of the hosts, and compile nothing.")
TABLE = flags.DEFINE_bool("table", False, "Print where every array of the state lies, and compile nothing.")


def main() -> None:
    """Plan what was asked for."""
    values = CONFIG.value
    if not isinstance(values, ConfigDict):
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        raise InputError(
            f"--config is {name!r}, which cannot be read; accepted is an experiment such as configs/cogvideox_5b.py"
        )
    # Nothing is read from there.
    values.data.path = values.data.path or "planned"
    config = parse(values)
    if STAGE.value not in ("pretrain", "align", "finetune"):
        raise InputError(f"--stage is {STAGE.value!r}; accepted: pretrain, align, finetune")
    from cinema_jax.chips import chip_of
    from cinema_jax.planning import planner

    chip_of(TOPOLOGY.value)
    # A run looks for its parts in its own folder first, and this one has none.
    with tempfile.TemporaryDirectory() as folder:
        _plan(planner.Run(config, Path(folder)))


def _plan(run: Any) -> None:
    from cinema_jax.chips import chip_of
    from cinema_jax.planning import hosts, planner, report

    target = planner.Target(TOPOLOGY.value, SLICES.value, BANDWIDTH.value * 1e9)
    if TABLE.value:
        print(planner.placement_table(run, STAGE.value, target))
        return
    if HOSTS.value:
        asked = [planner.plan_hosts(bucket, STAGE.value, target) for bucket in run.buckets]
        _print([dataclasses.asdict(one) for one in asked], map(hosts.table, asked), bool(run.config.data.buckets))
        _refuse([one.excess for one in asked if not one.fits])
        return
    if SEARCH.value:
        results = planner.search(run, STAGE.value, target)
    elif SAMPLER.value:
        results = planner.plan_sampler(run, TOPOLOGY.value)
    else:
        results = [planner.plan_step(bucket, STAGE.value, target) for bucket in run.buckets]
    several = SEARCH.value or SAMPLER.value or bool(run.config.data.buckets)
    chip = chip_of(TOPOLOGY.value)
    _print([result.as_json() for result in results], (report.table(result, chip) for result in results), several)
    _refuse([result.excess for result in results if not result.fits])
    _refuse([result.hosts.excess for result in results if result.hosts and not result.hosts.fits])


def _print(values: Sequence[Any], tables: Iterable[str], several: bool) -> None:
    if JSON.value:
        print(json.dumps(values if several else values[0], indent=2))
    else:
        print(f"\n\n{'-' * 80}\n\n".join(tables))


def _refuse(what: Sequence[str]) -> None:
    if what:
        raise InputError("; ".join(what))


if __name__ == "__main__":
    # Before jax is imported: there is no TPU here, and libtpu should not look for one.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
