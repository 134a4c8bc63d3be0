"""Plan a run for TPUs that are not at hand.

Compiles the config's train step and reports whether it fits in memory, what the chips send to each other, what bounds
its speed, and what the hosts must load, read, hold and write. A mesh that `train` would refuse is refused here. Needs
libtpu (pip install libtpu) and no TPU; neither weights nor data are read.

The exit status is 0 if everything fits, and 2 if something does not or is refused.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from cinema_jax.commands import command
from cinema_jax.config import CONDITIONED, parse
from cinema_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/cogvideox_5b.py.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU generation and shape of the slice, for example v5p:4x4x4, v6e:8x8 or v5e:4x4."
)
STAGE = flags.DEFINE_string("stage", "finetune", "Stage whose step is planned: pretrain, align or finetune.")
SAMPLER = flags.DEFINE_bool("sampler", False, "Plan the sampling of one video, not a train step.")
OFFLOAD = command.offload_flag(
    "With --sampler: parts are on the chips only while they are in use; --offload=layers: and two of the transformer's "
    "layers at a time."
)
WEIGHTS = flags.DEFINE_enum(
    "weights", None, ("int8", "fp8"), "With --sampler: large kernels are codes of one byte, as with generate --weights."
)
SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Rank meshes and remat presets: compile for up to four meshes, the most sharded one among them, with one preset "
    "after the other until one fits; at most 16 programs.",
)
PRICE = flags.DEFINE_float(
    "price",
    None,
    "Report what all stages of the config cost, at this price of one chip for an hour; compile nothing.",
    lower_bound=0.0,
)
UTILISATION = flags.DEFINE_float(
    "utilisation",
    0.35,
    "With --price: the share of the chips' peak at which the model's products are done.",
    lower_bound=0.01,
    upper_bound=1.0,
)
SHARES = flags.DEFINE_list(
    "shares",
    [],
    "With --price: how many of the steps are of each of config.data.buckets, in their order, for example 25,35,40; "
    "else as many of one as of another.",
)
SLICES = flags.DEFINE_integer("slices", 0, "Number of slices; 0: as in config.mesh.slice, or one.", lower_bound=0)
BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 1.0, "Bandwidth between a host and its disk or bucket, in GB (10^9 bytes) a second.", lower_bound=1e-6
)
JSON = flags.DEFINE_bool("json", False, "Print JSON, not a table.")
HOSTS = flags.DEFINE_bool("hosts", False, "Report only what the hosts need; compile nothing.")
TABLE = flags.DEFINE_bool("table", False, "Print where every array of the state is placed; compile nothing.")


def main() -> None:
    """Plan what was asked for."""
    values = CONFIG.value
    # Nothing is read from there.
    values.data.path = values.data.path or "the data"
    config = parse(values)
    ways = [flag.name for flag in (PRICE, TABLE, HOSTS, SEARCH, SAMPLER) if flag.value not in (None, False)]
    if len(ways) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in ways)} ask for different reports; say one of them")
    for flag in (OFFLOAD, WEIGHTS):
        if flag.value and not SAMPLER.value:
            raise InputError(f"--{flag.name} is of sampling: say --sampler, too")
    if STAGE.value not in CONDITIONED:
        raise InputError(f"--stage is {STAGE.value!r}; accepted: {', '.join(CONDITIONED)}")
    from cinema_jax.devices.chips import chip_of
    from cinema_jax.planning import planner

    chip_of(TOPOLOGY.value)
    # A run looks for its parts in its own folder first, and this one has none.
    with tempfile.TemporaryDirectory() as folder:
        _plan(planner.Run(config, Path(folder)))


def _plan(run: Any) -> None:
    from cinema_jax.devices.chips import chip_of
    from cinema_jax.planning import cost, hosts_table, planner, report

    target = planner.Target(TOPOLOGY.value, SLICES.value, BANDWIDTH.value * 1e9)
    if PRICE.value is not None:
        found = cost.costs(run, target, PRICE.value, UTILISATION.value, _shares())
        table = cost.table(found, run, target, PRICE.value, UTILISATION.value)
        _print([dataclasses.asdict(one) for one in found], [table], True)
        return
    if TABLE.value:
        print(planner.placement_table(run, STAGE.value, target))
        return
    if HOSTS.value:
        planner.check(run, STAGE.value, target)
        asked = [planner.plan_hosts(one, STAGE.value, target) for one in planner.variants(run, STAGE.value)]
        _print([dataclasses.asdict(one) for one in asked], map(hosts_table.table, asked), len(asked) > 1)
        _refuse([one.excess for one in asked if not one.fits])
        return
    if SEARCH.value:
        results = planner.search(run, STAGE.value, target)
    elif SAMPLER.value:
        results = planner.plan_sampler(run, TOPOLOGY.value, OFFLOAD.value, WEIGHTS.value)
    else:
        planner.check(run, STAGE.value, target)
        largest = planner.largest(planner.variants(run, STAGE.value))
        results = [planner.plan_step(one, STAGE.value, target, run) for one in largest]
    several = SEARCH.value or SAMPLER.value or len(results) > 1
    chip = chip_of(TOPOLOGY.value)
    _print([result.as_json() for result in results], (report.table(result, chip) for result in results), several)
    _refuse([result.excess for result in results if not result.fits])
    _refuse([result.hosts.excess for result in results if result.hosts and not result.hosts.fits])


def _shares() -> list[float]:
    try:
        return [float(share) for share in SHARES.value]
    except ValueError:
        raise InputError(f"--shares is {','.join(SHARES.value)}; it must be numbers such as 25,35,40") from None


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
    command.run(main, required=["config", "topology"])
