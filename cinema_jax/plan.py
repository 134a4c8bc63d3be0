"""Plan: `python -m cinema_jax.plan --config=configs/cogvideox_5b.py --topology=v5p:4x4x4`.

Compiles the config's real train step for chips that are not at hand, and says whether it fits, what the chips send to
each other and what bounds its speed. Needs libtpu (`pip install libtpu`) and no TPU; no weights are read.
"""

import json
import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from cinema_jax import command
from cinema_jax.config import parse
from cinema_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "An experiment of configs/, for example configs/cogvideox_5b.py."
)
TOPOLOGY = flags.DEFINE_string("topology", None, "Generation and chips, for example v5p:4x4x4, v6e:8x8 or v5e:4x4.")
STAGE = flags.DEFINE_string("stage", "finetune", "Which stage's step: pretrain, align or finetune.")
SAMPLER = flags.DEFINE_bool("sampler", False, "Plan the sampling of one video instead of a train step.")
SEARCH = flags.DEFINE_bool("search", False, "Compile several meshes and remat presets, and rank those that fit.")
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
TABLE = flags.DEFINE_bool("table", False, "Print where every array of the state lies, and compile nothing.")


def main() -> None:
    """Plan what was asked for."""
    values = CONFIG.value
    # Nothing is read from there.
    values.data.path = values.data.path or "planned"
    config = parse(values)
    if STAGE.value not in ("pretrain", "align", "finetune"):
        raise InputError(f"--stage is {STAGE.value!r}; accepted: pretrain, align, finetune")
    from cinema_jax.chips import chip_of
    from cinema_jax.planning import planner, report

    chip = chip_of(TOPOLOGY.value)
    run = planner.Run(config, Path("planned"))
    if TABLE.value:
        print(planner.placement_table(run, STAGE.value, TOPOLOGY.value))
        return
    if SEARCH.value:
        results = planner.search(run, STAGE.value, TOPOLOGY.value)
    elif SAMPLER.value:
        results = planner.plan_sampler(run, TOPOLOGY.value)
    else:
        results = [planner.plan_step(bucket, STAGE.value, TOPOLOGY.value) for bucket in run.buckets]
    if JSON.value:
        found = [result.as_json() for result in results]
        several = SEARCH.value or SAMPLER.value or config.data.buckets
        print(json.dumps(found if several else found[0], indent=2))
    else:
        print(f"\n\n{'-' * 80}\n\n".join(report.table(result, chip) for result in results))


if __name__ == "__main__":
    # Before jax is imported: there is no TPU here, and libtpu should not look for one.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
