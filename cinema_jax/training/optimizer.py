"""AdamW with warm-up, decay and clipping, as the peers train; or Muon for the matrices, which learns in fewer steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from cinema_jax.errors import InputError
from cinema_jax.sharding import path_name


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a stage."""

    # "adamw", or "muon": kernels move by their orthogonalised momentum, at AdamW's typical size (arXiv 2502.16982), and
    # everything else by AdamW, both with Nesterov momentum.
    name: str = "adamw"
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
            "name": (self.name in ("adamw", "muon"), "'adamw' or 'muon'"),
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
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_kernel(path), params)


def _is_kernel(path: Any) -> bool:
    return path_name(path).endswith("kernel")


def make_optimizer(config: OptimizerConfig, steps: int) -> Optimizer:
    """The optimizer of a stage of `steps` updates."""
    moves = _muon(config) if config.name == "muon" else optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        moves,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
    return Optimizer(transform, learning_rate(config, steps))


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    return contrib.muon(
        learning_rate=-1.0,  # directions, like AdamW's: the train step subtracts them
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        eps=config.epsilon,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,  # the typical size of AdamW's directions: learning rates carry over
    )


def _matrices(params: Any) -> Any:
    """The axes that make each kernel a matrix. Layers, and the taps of a convolution over time, are separate ones."""

    def axes(path, param):
        if not _is_kernel(path):
            return None
        inputs = (param.ndim - 2,) if param.ndim < 4 else tuple(range(param.ndim - 1))
        return contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=param.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
