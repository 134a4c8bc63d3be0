"""The flow matching loss, which several stages train on or are judged by, and its times."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cinema_jax.cinema import Batch, Cinema, Conditions, Params
from cinema_jax.config import Config
from cinema_jax.diffusion import flow
from cinema_jax.training.stages.base import Loss, Metrics
from cinema_jax.training.step import Share

# Equal parts of the flow's time, of which training and evaluation report the loss apart: `loss_t0` is the least noise.
TIME_BUCKETS = 4
# Where the held-out error is looked at: in the middle of each of these, and where layout, number and place of subjects
# are decided. `eval_loss` is over the first.
HELD_OUT_TIMES = (0.125, 0.375, 0.625, 0.875, 0.95, 0.99)


def flow_loss(cinema: Cinema, conditions: Callable[[Params, Batch], Conditions], stage: str) -> Loss:
    """Flow matching on the video's tokens, at random times and noise.

    With `flow.times="schedule"` the loss is the error of v, at times as often as in the transformer's own pretraining.
    """
    config = cinema.config.flow

    def loss(params, batch, keys):
        latents = batch["latents"]
        times = training_times(cinema.config, stage, keys, batch["index"])
        noise = flow.sample_noise(keys, latents.shape[1:])
        told, weights = conditions(params, batch), batch.get("error_weights")
        errors = flow_errors(cinema, params, latents, noise, times, told, weights)
        weighted = errors * flow.v_weight(times) if config.times == "schedule" else errors
        return weighted.mean(), by_time(errors, times)

    return loss


def training_times(config: Config, stage: str, keys: Key[Array, "B"], indices: Int[Array, "B"]) -> Float[Array, "B"]:
    """The times of a batch, or of one of its microbatches, as `config.flow` wants them.

    Args:
        indices: the samples' global example indices.
    """
    how, own = config.flow, config.of_stage(stage)
    if how.times == "logit_normal" and not how.stratified:
        return flow.logit_normal_times(keys, mean=how.time_mean, std=how.time_std, shift=how.shift)
    # Not the config's: the phases of a stage have batches of their own.
    batch_size = len(indices) * own.microbatches
    return times_below(config, flow.shares(keys, indices if how.stratified else None, batch_size))


def times_below(config: Config, shares: Float[Array, "B"]) -> Float[Array, "B"]:
    """The times below which training draws those shares of its times."""
    how = config.flow
    return flow.times_at(
        shares,
        mean=how.time_mean,
        std=how.time_std,
        shift=how.shift,
        uniform=how.times == "uniform",
        levels=config.schedule.flow_times() if how.times == "schedule" else None,
    )


def noisier(config: Config) -> list[float]:
    """Of the times that training draws, the share that lies beyond each of `HELD_OUT_TIMES`."""
    times = times_below(config, (jnp.arange(10_000) + 0.5) / 10_000)
    return [float(jnp.mean(times > time)) for time in HELD_OUT_TIMES]


def by_time(errors: Float[Array, "B"], times: Float[Array, "B"]) -> Metrics:
    """The samples' errors, apart for each bucket of their times."""
    bucket = jnp.minimum((times * TIME_BUCKETS).astype(jnp.int32), TIME_BUCKETS - 1)
    inside = [bucket == i for i in range(TIME_BUCKETS)]
    return {
        f"loss_t{i}": Share(jnp.where(here, errors, 0.0).mean(), here.astype(errors.dtype).mean())
        for i, here in enumerate(inside)
    }


def flow_evaluation(cinema: Cinema, conditions: Callable[[Params, Batch], Conditions]) -> Loss:
    """The same with fixed noise, at fixed times; the loss is over those in the middle of the `TIME_BUCKETS`."""

    def loss(params, batch, keys):
        errors = held_out_errors(cinema, params, batch, conditions(params, batch))
        return errors[:TIME_BUCKETS].mean(), {f"loss_t{i}": errors[i] for i in range(len(HELD_OUT_TIMES))}

    return loss


def held_out_errors(cinema: Cinema, params: Params, batch: Batch, told: Conditions) -> Float[Array, "times"]:
    """The mean error of a batch at each of `HELD_OUT_TIMES`, each with its own fixed noise."""
    latents, grid = batch["latents"], jnp.asarray(HELD_OUT_TIMES, float)

    def at(i):
        noise = flow.evaluation_noise(batch["index"], i, latents.shape[1:])
        times = jnp.full(latents.shape[0], grid[i])
        return flow_errors(cinema, params, latents, noise, times, told).mean()

    return jax.lax.map(at, jnp.arange(len(grid)))


def flow_errors(
    cinema: Cinema,
    params: Params,
    latents: Float[Array, "B F H W C"],
    noise: Float[Array, "B F H W C"],
    times: Float[Array, "B"],
    conditions: Conditions,
    weights: Float[Array, "B F H W"] | None = None,
) -> Float[Array, "B"]:
    """Per-sample flow matching error at given times and noise."""
    velocity = cinema.velocity(params, flow.interpolate(latents, noise, times), times, conditions)
    return flow.flow_loss(velocity, latents, noise, weights)
