"""What a training run carries from step to step, and nothing else."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from cinema_jax.config import StageConfig
from cinema_jax.devices import sharding
from cinema_jax.diffusion.flow import example_keys
from cinema_jax.errors import InputError
from cinema_jax.training.optimizer import Optimizer

Params = Mapping[str, Any]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "ema", "opt_state", "key", "skipped"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The trainable parameters and everything that changes with them. Frozen parts are not in here."""

    # Batches consumed so far; also the position of the data.
    step: Any
    # Trainable parameters: {"dit/blocks/to_q/kernel": array}.
    params: Params
    # Exponential moving average of `params`.
    ema: Params
    # The optimizer's moments.
    opt_state: Any
    # Key data of the stage's random numbers; it never changes.
    key: Any
    # Batches whose update was dropped because loss or gradient was not finite.
    skipped: Any


def _build(optimizer: Optimizer, params: Params, key: UInt32[Array, "2"]) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        # Copies: the state is donated to the train step, so its buffers must be its own.
        params=jax.tree.map(jnp.copy, dict(params)),
        ema=jax.tree.map(jnp.copy, dict(params)),
        opt_state=optimizer.transform.init(dict(params)),
        key=key,
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract(params: Params, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """The shapes, types and shardings of the state that `create` would make: to restore into, or to compile for.

    Args:
        params: {path: anything with a shape and a dtype}.
    """
    params = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in params.items()}
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return sharding.abstract(jax.eval_shape(functools.partial(_build, optimizer), params, key), mesh)


def stage_seed(seed: int, stage: str) -> int:
    """A stage's own seed, from the run's: no two stages see the same noise at the same times on the same videos."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]).generate_state(1)[0])


def create(params: Params, optimizer: Optimizer, mesh: Mesh, *, seed: int) -> TrainState:
    """A state at step 0, placed on `mesh`. `params` ({path: array}) are copied.

    The optimizer is initialised under `jit` with output shardings: otherwise its moments are replicated, and the second
    step compiles again.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract(params, optimizer, mesh))
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    build = jax.jit(functools.partial(_build, optimizer), out_shardings=places)
    return build(sharding.place(dict(params), mesh), sharding.place(key, mesh))


def update_ema(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """The moving average after update number `step` (0 = first), with decay min(decay, (1 + step) / (10 + step))."""
    step = jnp.asarray(step, float)
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, new: mean + rate.astype(mean.dtype) * (new - mean), ema, params)


def sample_keys(key: UInt32[Array, "2"], index: Int[Array, "B"]) -> Any:
    """One random key per sample, a function of the run's key and the sample's position in the endless stream only."""
    return example_keys(jax.random.wrap_key_data(key, impl="threefry2x32"), index)


def trained(paths: Iterable[str], config: StageConfig) -> tuple[list[str], list[str]]:
    """Parameter paths that a stage trains, and the rest, in order; raises like `trainable`, for its rates too."""
    taken, rest = trainable(paths, config.trainable)
    trainable(taken, [pattern for pattern, _ in config.optimizer.rates], "optimizer.rates")
    return taken, rest


def trainable(paths: Iterable[str], patterns: Sequence[str], field: str = "trainable") -> tuple[list[str], list[str]]:
    """Split parameter paths into those that a pattern matches as a whole (`dit/.*`), and the rest, in order.

    Args:
        field: where the patterns stand in the config, for messages.

    Raises:
        InputError: a pattern that matches nothing or is no regular expression, by name.
    """
    paths = list(paths)
    matched = set()
    for pattern in patterns:
        try:
            hits = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise InputError(f"{field} pattern {pattern!r} is no regular expression: {error}") from None
        if not hits:
            parts = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise InputError(f"{field} pattern {pattern!r} matches no parameter; the model's parts are {parts}")
        matched.update(hits)
    return [path for path in paths if path in matched], [path for path in paths if path not in matched]
