"""Sampling a network that predicts v on a discrete noise schedule, as CogVideoX was published; and as a flow.

`v = alpha noise - sigma data` at `z = alpha data + sigma noise`, with `alpha^2 + sigma^2 = 1` (arXiv 2202.00512). As in
`samplers.py`, a step is linear in what it knows, with factors that depend on the timesteps alone.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinema_jax.diffusion.schedule import NoiseSchedule

# (z, timestep: B) -> v; timesteps may lie between two of the schedule's.
PredictV = Callable[[Array, Array], Array]


class DiscreteState(NamedTuple):
    """Where sampling is, and the prediction of the data before."""

    z: Float[Array, "B *shape"]
    x1: Float[Array, "B *shape"]


def discrete_start(z: Float[Array, "B *shape"]) -> DiscreteState:
    """Before the first step."""
    return DiscreteState(z, jnp.zeros_like(z))


def discrete_steps(
    scheduler: Literal["ddim", "dpm"], schedule: NoiseSchedule, steps: int
) -> Float[np.ndarray, "steps 7"]:
    """Each step's timestep, alpha and sigma, and its factors of z, the data, the data before and new noise.

    "ddim" (arXiv 2010.02502) is deterministic; "dpm" is the stochastic DPM-Solver++ 2M (arXiv 2211.01095) in the form
    of `CogVideoXDPMScheduler`: of first order in the first and the last step. Both step by `num_train_timesteps //
    steps` timesteps, as the references do, even where their timesteps lie further apart.
    """
    alphas = schedule.alphas_cumprod()
    timesteps = schedule.timesteps(steps)
    rows = []
    for i, timestep in enumerate(timesteps):
        before = timestep - schedule.num_train_timesteps // steps
        now, then = alphas[timestep], alphas[before] if before >= 0 else 1.0
        if scheduler == "ddim":
            keep = math.sqrt((1 - then) / (1 - now))
            factors = [keep, math.sqrt(then) - math.sqrt(now) * keep, 0.0, 0.0]
        else:
            last = alphas[timesteps[i - 1]] if i > 0 and before >= 0 else None
            factors = _dpm_factors(now, then, last)
        rows.append([timestep, math.sqrt(now), math.sqrt(1 - now), *factors])
    return np.asarray(rows, np.float32)


def _dpm_factors(now: float, then: float, last: float | None) -> list[float]:
    """From the signal's variances at a step's start and end and, for second order, at the start of the step before."""
    # Half the logarithm of the signal-to-noise ratio: infinite at pure noise and at pure data.
    with np.errstate(divide="ignore"):
        snr, following = (0.5 * (np.log(a) - np.log1p(-a)) for a in (now, then))
        h = following - snr
        keep = np.sqrt((1 - then) / (1 - now)) * np.exp(-h)
        gain = -np.expm1(-2 * h) * np.sqrt(then)
        slope = 0.0 if last is None else 0.5 * h / (snr - 0.5 * (np.log(last) - np.log1p(-last)))
    noise = np.sqrt((1 - then) * -np.expm1(-2 * h))
    return [keep, gain * (1 + slope), -gain * slope, noise]


def discrete_step(
    predict: PredictV,
    state: DiscreteState,
    step: Float[Array | np.ndarray, "7"],
    noise: Float[Array, "B *shape"] | None = None,
) -> DiscreteState:
    """One step, one call of the network; `step` is a row of `discrete_steps`, `noise` what "dpm" adds."""
    timestep, alpha, sigma, *factors = (step[i] for i in range(7))
    v = predict(state.z, jnp.broadcast_to(timestep, state.z.shape[:1])).astype(state.z.dtype)
    x = alpha * state.z - sigma * v
    z = factors[0] * state.z + factors[1] * x + factors[2] * state.x1
    return DiscreteState(z if noise is None else z + factors[3] * noise, x)


def dynamic_guidance(scale: float, steps: int, timestep: int) -> float:
    """The guidance scale at a timestep if it is dynamic: by the raw timestep, as CogVideoX' pipeline computes it.

    It grows from 1 on. A scale of 1 or less, which guides nowhere, stays what it is, as in that pipeline.
    """
    if scale <= 1:
        return scale
    return 1 + scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5)) / 2


def as_velocity(predict: PredictV, schedule: NoiseSchedule) -> Callable[[Array, Array], Array]:
    """The same network as a rectified flow's velocity field: a change of variables at equal signal-to-noise ratio.

    At flow time t the flow's state `z = (1 - t) data + t noise` is, divided by its own scale, a state of the schedule;
    its timestep is interpolated between those whose flow times surround t. Exact at the schedule's timesteps. Below the
    first one's time (0.048 for CogVideoX-2b, 0.028 for 5b) the timestep stays 0, so samplers should step from there
    straight to 0: `time_grid(smallest=...)`. At t = 1 it is finite.

    Returns:
        `velocity(z: B ..., time: B) -> B ...`, with time in [0, 1].
    """
    times = schedule.flow_times()
    table, timesteps = times.astype(np.float32), np.arange(len(times), dtype=np.float32)

    def velocity(z: Float[Array, "B *shape"], time: Float[Array, "B"]) -> Float[Array, "B *shape"]:
        scale = jnp.sqrt((1 - time) ** 2 + time**2)
        alpha, sigma, scale = (_rows(x, z) for x in ((1 - time) / scale, time / scale, scale))
        scaled = z / scale
        v = predict(scaled.astype(z.dtype), jnp.interp(time, table, timesteps))
        return (sigma - alpha) * scaled + (alpha + sigma) * v

    return velocity


def _rows(x: Float[Array, "B"], like: Float[Array, "B *shape"]) -> Float[Array, "B ..."]:
    return x.reshape(-1, *(1,) * (like.ndim - 1))
