"""What the stages of a config cost on a slice: steps, hours and money, by what the model computes."""

import dataclasses
import math
from collections.abc import Sequence

from cinema_jax.chips import chip_of
from cinema_jax.cinema import Cinema
from cinema_jax.planning.program import abstract_batch, part_configs
from cinema_jax.training.run import Run
from cinema_jax.training.stages import STAGES
from cinema_jax.training.work import work

# Whose examples are known without data.
PLANNED = ("pretrain", "align", "finetune")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one stage."""

    stage: str
    steps: int
    # Products of the forward and backward pass over all chips, without recomputation.
    tflop_per_step: float
    seconds_per_step: float
    hours: float
    chip_hours: float
    # In the currency of --price.
    cost: float
    # What one preemption loses on average: half of the steps between two checkpoints.
    lost_minutes: float
    lost_cost: float


def costs(run: Run, topology: str, slices: int, price: float, utilisation: float) -> list[Cost]:
    """Those of all stages of the config that can be planned.

    Args:
        slices: 0: as many as the config's mesh names.
        price: of one chip for an hour.
        utilisation: the share of the chips' peak at which the model's products are done (MFU).
    """
    chips = math.prod(map(int, topology.partition(":")[2].split("x"))) * (slices or max(1, run.config.mesh.slice))
    speed = chips * chip_of(topology).flops * utilisation
    found = []
    for stage in run.config.stages:
        if stage not in PLANNED:
            continue
        config, flops = getattr(run.config, stage), step_flops(run, stage)
        seconds = flops / speed
        hours, lost = config.steps * seconds / 3600, config.checkpoint_every / 2 * seconds
        found.append(
            Cost(
                stage,
                config.steps,
                flops / 1e12,
                seconds,
                hours,
                hours * chips,
                hours * chips * price,
                lost / 60,
                lost / 3600 * chips * price,
            )
        )
    return found


def step_flops(run: Run, stage: str) -> float:
    """What a step computes; of several buckets, their mean."""
    found = []
    for bucket in run.buckets:
        cinema = Cinema(bucket.config, part_configs(bucket, STAGES[stage].needed(bucket.config)))
        trained, _ = STAGES[stage].trained(bucket.config, cinema.shapes)
        batch = abstract_batch(cinema, stage, getattr(bucket.config, stage).batch_size)
        found.append(work(STAGES[stage], cinema, trained, batch).flops)
    return sum(found) / len(found)


def table(found: Sequence[Cost], topology: str, price: float, utilisation: float) -> str:
    """For people."""
    lines = [
        f"{topology} at {utilisation:.0%} of the chips' peak, {price:g} for a chip and hour:",
        "",
        f"{'stage':<10}{'steps':>8}{'TFLOP/step':>12}{'s/step':>9}{'hours':>8}{'chip-hours':>12}{'cost':>11}"
        f"{'lost by a preemption':>28}",
    ]
    for one in found:
        lost = f"{one.lost_minutes:,.1f} min, {one.lost_cost:,.2f}"
        lines.append(
            f"{one.stage:<10}{one.steps:>8}{one.tflop_per_step:>12,.0f}{one.seconds_per_step:>9.2f}{one.hours:>8.1f}"
            f"{one.chip_hours:>12,.0f}{one.cost:>11,.0f}{lost:>28}"
        )
    hours, chip_hours, cost = (sum(getattr(one, name) for one in found) for name in ("hours", "chip_hours", "cost"))
    lines.append(f"{'all':<10}{'':>29}{hours:>8.1f}{chip_hours:>12,.0f}{cost:>11,.0f}")
    lines += ["", "Compilation, evaluations, the encoding of videos and waiting for slices come on top."]
    return "\n".join(lines)
