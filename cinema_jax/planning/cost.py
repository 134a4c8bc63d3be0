"""What the stages of a config cost on a slice: steps, hours and money, by what the model computes."""

import dataclasses
import math
from collections.abc import Sequence

from cinema_jax.cinema import Cinema
from cinema_jax.config import CONDITIONED
from cinema_jax.data.buckets import Bucket
from cinema_jax.devices.chips import chip_count, chip_of
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.planning.planner import Target
from cinema_jax.planning.program import abstract_batch, part_configs
from cinema_jax.training.phases import label, phases, run_in
from cinema_jax.training.stages import STAGES
from cinema_jax.training.work import work


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one stage, or of one of its phases."""

    stage: str
    steps: int
    # Products of the forward and backward pass over all chips, without recomputation; in the mean of the buckets.
    tflop_per_step: float
    # The same of a step of each bucket, by its name.
    tflop_of_buckets: dict[str, float]
    seconds_per_step: float
    hours: float
    chip_hours: float
    # In the currency of --price.
    cost: float
    # What one preemption loses on average: half of the steps between two checkpoints.
    lost_minutes: float
    lost_cost: float


def costs(run: Run, target: Target, price: float, utilisation: float, shares: Sequence[float | int] = ()) -> list[Cost]:
    """Those of all stages of the config that can be planned, each phase apart.

    Args:
        price: of one chip for an hour.
        utilisation: the share of the chips' peak at which the model's products are done (MFU).
        shares: of the steps, that are of each of `config.data.buckets`; empty: all alike.

    Raises:
        InputError: the shares are none, or others than there are buckets.
    """
    _check_shares(run, shares)
    chips = chip_count(target.topology) * target.count(run)
    speed = chips * chip_of(target.topology).flops * utilisation
    found = []
    for stage in run.config.stages:
        if stage not in CONDITIONED:
            continue
        config = run.config.of_stage(stage)
        for phase in phases(run.config, stage):
            one = run_in(run, stage, phase)
            buckets = bucket_flops(one, stage)
            seconds = _mean(run, one, buckets, shares) / speed
            steps, lost = phase.end - phase.first, config.checkpoint_every / 2 * seconds
            hours = steps * seconds / 3600
            found.append(
                Cost(
                    label(one, stage),
                    steps,
                    seconds * speed / 1e12,
                    {name: flops / 1e12 for name, flops in buckets.items()},
                    seconds,
                    hours,
                    hours * chips,
                    hours * chips * price,
                    lost / 60,
                    lost / 3600 * chips * price,
                )
            )
    return found


def _check_shares(run: Run, shares: Sequence[float | int]) -> None:
    count = len(run.buckets)
    if shares and (len(shares) != count or min(shares) < 0 or not 0 < sum(shares) < math.inf):
        raise InputError(
            f"--shares is {','.join(f'{x:g}' for x in shares)}; it must be one number of 0 or more for each of the "
            f"{count} buckets of config.data.buckets, in their order, not all of them 0"
        )


def _mean(run: Run, phase: Run, flops: dict[str, int], shares: Sequence[float | int]) -> float:
    """Of the buckets' steps, as often as the shares say. Those that are alike in shorter clips are one there."""
    weights = dict.fromkeys(flops, 0.0)
    for bucket, share in zip(run.buckets, shares or [1.0] * len(run.buckets), strict=True):
        data, name = bucket.config.data, bucket.bucket_name
        if phase.most_frames is not None:
            frames = min(data.frames, phase.most_frames)
            name = Bucket(frames, data.height, data.width, data.max_references).name
        weights[name] += share
    return sum(weights[name] * flops[name] for name in flops) / sum(weights.values())


def bucket_flops(run: Run, stage: str) -> dict[str, int]:
    """What a step of each bucket computes, by its name."""
    found = {}
    for bucket in run.buckets:
        cinema = Cinema(bucket.config, part_configs(bucket, STAGES[stage].needed(bucket.config)))
        trained, _ = STAGES[stage].trained(bucket.config, cinema.shapes)
        batch = abstract_batch(cinema, stage, bucket.config.of_stage(stage).batch_size)
        found[bucket.bucket_name] = work(STAGES[stage], cinema, trained, batch).flops
    return found


def table(found: Sequence[Cost], run: Run, target: Target, price: float, utilisation: float) -> str:
    """For people."""
    count, width = target.count(run), max(10, *(len(one.stage) + 2 for one in found))
    slices = f"{count} x {target.topology}" if count > 1 else target.topology
    lines = [
        f"{slices} at {utilisation:.0%} of the chips' peak, {price:g} for a chip and hour:",
        "",
        f"{'stage':<{width}}{'steps':>8}{'TFLOP/step':>12}{'s/step':>9}{'hours':>8}{'chip-hours':>12}{'cost':>11}"
        f"{'lost by a preemption':>28}",
    ]
    for one in found:
        lost = f"{one.lost_minutes:,.1f} min, {one.lost_cost:,.2f}"
        lines.append(
            f"{one.stage:<{width}}{one.steps:>8}{one.tflop_per_step:>12,.0f}{one.seconds_per_step:>9.2f}"
            f"{one.hours:>8.1f}{one.chip_hours:>12,.0f}{one.cost:>11,.0f}{lost:>28}"
        )
        if len(one.tflop_of_buckets) > 1:
            lines += [f"  {name:<{width + 6}}{x:>12,.0f}" for name, x in one.tflop_of_buckets.items()]
    hours, chip_hours, cost = (sum(getattr(one, name) for one in found) for name in ("hours", "chip_hours", "cost"))
    lines.append(f"{'all':<{width}}{'':>29}{hours:>8.1f}{chip_hours:>12,.0f}{cost:>11,.0f}")
    left_out = [stage for stage in run.config.stages if stage not in CONDITIONED]
    lines += ["", f"Not counted: {', '.join(left_out)}."] if left_out else []
    lines += ["", "Compilation, evaluations, the encoding of videos and waiting for slices come on top."]
    return "\n".join(lines)
