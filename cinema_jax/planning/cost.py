"""What the stages of a config cost on a slice: steps, hours and money, by what the model computes."""

import dataclasses
from collections.abc import Sequence

from cinema_jax.chips import chip_count, chip_of
from cinema_jax.cinema import Cinema
from cinema_jax.config import CONDITIONED
from cinema_jax.planning.planner import Target
from cinema_jax.planning.program import abstract_batch, part_configs
from cinema_jax.training.run import Run
from cinema_jax.training.stages import STAGES
from cinema_jax.training.work import work


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


def costs(run: Run, target: Target, price: float, utilisation: float) -> list[Cost]:
    """Those of all stages of the config that can be planned.

    Args:
        price: of one chip for an hour.
        utilisation: the share of the chips' peak at which the model's products are done (MFU).
    """
    chips = chip_count(target.topology) * target.count(run)
    speed = chips * chip_of(target.topology).flops * utilisation
    found = []
    for stage in run.config.stages:
        if stage not in CONDITIONED:
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


def table(found: Sequence[Cost], run: Run, target: Target, price: float, utilisation: float) -> str:
    """For people."""
    count = target.count(run)
    slices = f"{count} x {target.topology}" if count > 1 else target.topology
    lines = [
        f"{slices} at {utilisation:.0%} of the chips' peak, {price:g} for a chip and hour:",
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
    left_out = [stage for stage in run.config.stages if stage not in CONDITIONED]
    lines += ["", f"Not counted: {', '.join(left_out)}."] if left_out else []
    lines += ["", "Compilation, evaluations, the encoding of videos and waiting for slices come on top."]
    return "\n".join(lines)
