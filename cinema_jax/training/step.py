"""One training step of any model: it knows a loss function and nothing more."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cinema_jax.errors import InputError
from cinema_jax.training.optimizer import Optimizer
from cinema_jax.training.state import TrainState, sample_keys, update_ema

# (trainable parameters, frozen parameters, batch, one key per sample) -> (loss of the batch, metrics): each a mean over
# samples, or a `Share`
LossFn = Callable[[Any, Any, Mapping[str, Any], Any], tuple[Any, dict[str, Any]]]
TrainStep = Callable[[TrainState, Any, Mapping[str, Any]], tuple[TrainState, dict[str, Any]]]


class Share(NamedTuple):
    """A mean over what samples have unequally many of (tokens), or only some: two means over *all* samples.

    As means over all samples they may be averaged over microbatches and steps; their ratio, which is meant, may not.
    """

    # Of what each sample adds up to: 0 where it has none.
    total: Any
    # Of how many it has.
    weight: Any

    @property
    def ratio(self) -> Any:
        """The mean that is meant."""
        return self.total / self.weight


def mean_of_batches(values: Sequence[Any]) -> float:
    """The mean of a metric over batches; of shares that of all their samples together, NaN where none has any."""
    if not isinstance(values[0], Share):
        return float(np.mean([float(value) for value in values]))
    total, weight = (sum(map(float, each)) for each in zip(*values, strict=True))
    return total / weight if weight else math.nan


OWN_METRICS = ("loss", "grad_norm", "clipped", "learning_rate", "skipped")


def make_train_step(
    loss_fn: LossFn, optimizer: Optimizer, state: TrainState, *, ema_decay: float, microbatches: int = 1
) -> TrainStep:
    """A compiled `step(state, frozen, batch) -> (state, metrics)` that consumes its state.

    Args:
        loss_fn: its loss and metrics must be means over the samples of the batch it is given, or a `Share` of two
            such means (no parameter may change the second one of a loss). Its random numbers come from the keys it is
            given.
        state: a state (or abstract state) as the step will see it; only its shardings are read.
        ema_decay: the average's final decay.
        microbatches: how many parts of the batch are run one after the other, to save memory.

    The batch is a dict of arrays with a leading axis of samples; `batch["index"]` (int32) is each sample's position in
    the endless stream. Metrics are the loss function's and `loss`; `grad_norm` before clipping, and that of each part
    of the model as `grad_norm/<part>`; `clipped`, a `Share`: of the updates those whose gradient was scaled down;
    `learning_rate`; and `skipped`: updates dropped so far because loss or gradient was not finite. A dropped update
    leaves everything but `step` as it was.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    value_and_grad = value_and_grad_of(loss_fn)

    def step(state: TrainState, frozen: Any, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        keys = sample_keys(state.key, batch["index"])
        if microbatches == 1:
            (loss, (weight, metrics)), grads = value_and_grad(state.params, frozen, batch, keys)
        else:
            summed = _accumulate(value_and_grad, state.params, frozen, (batch, keys), microbatches)
            (loss, (weight, metrics)), grads = summed
        loss, grads = jax.tree.map(lambda x: x / weight.astype(x.dtype), (loss, grads))
        if taken := [name for name in OWN_METRICS if name in metrics]:
            raise ValueError(f"loss_fn reports {', '.join(taken)}, a name the train step keeps for its own metrics")
        grads = jax.lax.with_sharding_constraint(grads, places.params)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        rate = optimizer.learning_rate(state.step)
        updated = _apply(optimizer, state, grads, rate, ema_decay)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        new_state = TrainState(state.step + 1, kept.params, kept.ema, kept.opt_state, state.key, skipped)
        own = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "skipped": skipped}
        own["clipped"] = Share(
            *(x.astype(grad_norm.dtype) for x in (finite & (grad_norm > optimizer.clip_norm), finite))
        )
        return new_state, metrics | own | _norms_by_part(grads)

    return jax.jit(step, donate_argnums=0, out_shardings=(places, places.step))


def value_and_grad_of(loss_fn: LossFn) -> Callable[..., tuple[tuple[Any, tuple[Any, dict[str, Any]]], Any]]:
    """A loss as ((total, (weight, metrics)), gradient of the total): all of them may be averaged over microbatches."""

    def total(params: Any, *arguments: Any) -> tuple[Any, tuple[Any, dict[str, Any]]]:
        loss, metrics = loss_fn(params, *arguments)
        share = loss if isinstance(loss, Share) else Share(loss, jnp.ones_like(loss))
        return share.total, (share.weight, metrics)

    return jax.value_and_grad(total, has_aux=True)


def _apply(optimizer: Optimizer, state: TrainState, grads: Any, rate: Any, ema_decay: float) -> TrainState:
    """The state after one update, counters aside."""
    directions, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), state.params, directions)
    ema = update_ema(state.ema, params, state.step, ema_decay)
    return TrainState(state.step, params, ema, opt_state, state.key, state.skipped)


def _norms_by_part(grads: Mapping[str, Any]) -> dict[str, Any]:
    """The gradient's norm in each part of the model, whose parameters are `<part>/...`."""
    parts = sorted({path.split("/")[0] for path in grads})
    own = {part: [x for path, x in grads.items() if path.split("/")[0] == part] for part in parts}
    return {f"grad_norm/{part}": optax.global_norm(leaves) for part, leaves in own.items()}


def _accumulate(value_and_grad: Callable, params: Any, frozen: Any, samples: Any, count: int) -> Any:
    """Mean loss, metrics and gradient over `count` microbatches, one after the other."""

    def split(x):
        if x.shape[0] % count:
            raise InputError(f"microbatches = {count} does not divide the batch of {x.shape[0]} samples")
        # Microbatch m is every count-th row: each device then works on rows that it already holds.
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    def one(total, part):
        new = value_and_grad(params, frozen, *part)
        return jax.tree.map(lambda t, x: t + x / count, total, new), None

    parts = jax.tree.map(split, samples)
    shapes = jax.eval_shape(value_and_grad, params, frozen, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(one, zeros, parts)[0]
