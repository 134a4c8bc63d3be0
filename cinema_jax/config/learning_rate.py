"""The learning rates of a stage, as its config describes them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from cinema_jax.config.optimizer import OptimizerConfig


def learning_rate(
    config: OptimizerConfig, steps: int, before: Sequence[tuple[int, float]] = ()
) -> Callable[[Any], Any]:
    """The schedule: step (0 = first update) to learning rate, for a stage of `steps` updates.

    Args:
        before: of each phase before the main one, how many updates are done at its end, and its own rate, which is
            constant. What the config says of a decay is then of the main phase alone, and the warm-up of the first one.
    """
    begin = max([config.warmup_steps, *(end for end, _ in before)])

    def schedule(step):
        step = jnp.asarray(step, float)
        # The first update already moves: warm-up counts from 1.
        warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        rate = config.learning_rate * warmup
        if config.schedule == "cosine":
            # The last update is number `steps - 1`.
            progress = jnp.clip((step - begin) / max(steps - 1 - begin, 1), 0.0, 1.0)
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
            rate = rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
        for end, peak in reversed(before):
            rate = jnp.where(step < end, peak * warmup, rate)
        return rate

    return schedule
