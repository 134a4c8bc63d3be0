"""AdamW with warm-up, decay and clipping, as the peers train."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cinema_jax.errors import InputError
from cinema_jax.sharding import path_name


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a stage."""

    # Peak learning rate.
    learning_rate: float = 1e-4
    # Steps of linear warm-up from 0.
    warmup_steps: int = 100
    # What follows the warm-up: "constant", or "cosine" down to `final_fraction` of the peak at the last step.
    schedule: str = "constant"
    # Learning rate at the end of a cosine, as a fraction of the peak.
    final_fraction: float = 0.0
    # Decay of the two moments.
    beta1: float = 0.9
    beta2: float = 0.95
    # Added to the root of the second moment.
    epsilon: float = 1e-8
    # Decoupled weight decay; applied to kernels only.
    weight_decay: float = 1e-4
    # Gradients are scaled down to this global norm.
    clip_norm: float = 1.0

    def __post_init__(self):
        bounds = {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "schedule": (self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            "final_fraction": (0 <= self.final_fraction <= 1, "in [0, 1]"),
            "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
            "beta2": (0 <= self.beta2 < 1, "in [0, 1)"),
            "epsilon": (self.epsilon > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "clip_norm": (self.clip_norm > 0, "above 0 (inf clips nothing)"),
        }
        for field, (good, accepted) in bounds.items():
            if not good:
                raise InputError(f"optimizer.{field} = {getattr(self, field)!r} must be {accepted}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule and its learning rate, which the train step applies by the state's step counter.

    Keeping the two apart gives one step counter: the learning rate that is reported is the one that was used.
    """

    # Gradients to update directions, without learning rate: parameters become `p - learning_rate(step) * direction`.
    transform: optax.GradientTransformation
    # Step to learning rate.
    learning_rate: Callable[[Any], Any]


def learning_rate(config: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """The schedule: step (0 = first update) to learning rate, for a stage of `steps` updates."""

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        # The first update already moves: warm-up counts from 1.
        warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        if config.schedule == "constant":
            return config.learning_rate * warmup
        progress = jnp.clip((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 0.0, 1.0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.learning_rate * warmup * (config.final_fraction + (1 - config.final_fraction) * cosine)

    return schedule


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: kernels; not biases, norms, embeddings and learned latents."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).endswith("kernel"), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> Optimizer:
    """AdamW for a stage of `steps` updates."""
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
    return Optimizer(transform, learning_rate(config, steps))
