"""AdamW with warm-up, decay and clipping, as the peers train; or Muon for the matrices, which learns in fewer steps."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from optax import contrib

from cinema_jax.config.learning_rate import learning_rate
from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.devices.sharding import path_name


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule and its learning rate, which the train step applies by the state's step counter.

    Keeping the two apart gives one step counter: the learning rate that is reported is the one that was used.
    """

    # Gradients to update directions, without learning rate: parameters become `p - learning_rate(step) * direction`.
    transform: optax.GradientTransformation
    # Step to learning rate.
    learning_rate: Callable[[Any], Any]
    # The global norm to which the transform scales larger gradients down, for the report.
    clip_norm: float = float("inf")


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: kernels; not biases, norms, embeddings and learned latents."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_kernel(path), params)


def _is_kernel(path: Any) -> bool:
    return path_name(path).endswith("kernel")


def _named(pattern: str, params: Any) -> Any:
    """Which parameters' names match."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(re.fullmatch(pattern, path_name(path))), params)


def make_optimizer(config: OptimizerConfig, steps: int, before: Sequence[tuple[int, float]] = ()) -> Optimizer:
    """The optimizer of a stage of `steps` updates; `before` as in `learning_rate`."""
    moves = _muon(config) if config.name == "muon" else optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        moves,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        *(optax.masked(optax.scale(factor), functools.partial(_named, pattern)) for pattern, factor in config.rates),
    )
    return Optimizer(transform, learning_rate(config, steps, before), config.clip_norm)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    return contrib.muon(
        learning_rate=-1.0,  # directions, like AdamW's: the train step subtracts them
        beta=config.beta1,
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
