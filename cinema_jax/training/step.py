"""One training step of any model: it knows a loss function and nothing more."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cinema_jax.errors import InputError
from cinema_jax.training.optimizer import Optimizer
from cinema_jax.training.state import TrainState, sample_keys, update_ema

# (trainable parameters, frozen parameters, batch, one key per sample) -> (mean loss of the batch, means of metrics,
# each a number or a `Share`)
LossFn = Callable[[Any, Any, Mapping[str, Any], Any], tuple[Any, dict[str, Any]]]
TrainStep = Callable[[TrainState, Any, Mapping[str, Any]], tuple[TrainState, dict[str, Any]]]


class Share(NamedTuple):
    """A metric that only some samples have: two means over *all* samples, whose ratio is the mean over those that do.

    As means over all samples they may be averaged over microbatches and steps; the ratio may not.
    """

    # Of the metric, 0 where a sample has none.
    total: Any
    # Of 1 where a sample has it, else 0.
    weight: Any


OWN_METRICS = ("loss", "grad_norm", "learning_rate", "skipped")


def make_train_step(
    loss_fn: LossFn, optimizer: Optimizer, state: TrainState, *, ema_decay: float, microbatches: int = 1
) -> TrainStep:
    """A compiled `step(state, frozen, batch) -> (state, metrics)` that consumes its state.

    Args:
        loss_fn: its loss and metrics must be means over the samples of the batch it is given, and its random numbers
            come from the keys it is given.
        state: a state (or abstract state) as the step will see it; only its shardings are read.
        ema_decay: the average's final decay.
        microbatches: how many parts of the batch are run one after the other, to save memory.

    The batch is a dict of arrays with a leading axis of samples; `batch["index"]` (int32) is each sample's position in
    the endless stream. Metrics are the loss function's and `loss`, `grad_norm` (before clipping), `learning_rate` and
    `skipped`: updates dropped so far because loss or gradient was not finite. A dropped update leaves everything but
    `step` as it was.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, frozen: Any, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        keys = sample_keys(state.key, batch["index"])
        if microbatches == 1:
            (loss, metrics), grads = value_and_grad(state.params, frozen, batch, keys)
        else:
            (loss, metrics), grads = _accumulate(value_and_grad, state.params, frozen, (batch, keys), microbatches)
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
        return new_state, metrics | own

    return jax.jit(step, donate_argnums=0, out_shardings=(places, places.step))


def _apply(optimizer: Optimizer, state: TrainState, grads: Any, rate: Any, ema_decay: float) -> TrainState:
    """The state after one update, counters aside."""
    directions, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), state.params, directions)
    ema = update_ema(state.ema, params, state.step, ema_decay)
    return TrainState(state.step, params, ema, opt_state, state.key, state.skipped)


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
