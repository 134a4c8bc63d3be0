"""From noise to data along a velocity field, over a fixed grid of times.

The step of a solver is linear in the last states and in the last predictions of the data, with factors that depend on
the times alone. They are computed beforehand, so that one compiled step serves every solver.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinema_jax.diffusion.config import Solver, Spacing
from cinema_jax.diffusion.flow import shift_times

# At time 1 there is no signal, and its logarithm is infinite.
_LARGEST = 1 - 1e-6
# Timesteps of a flow that was trained on numbered ones.
_TIMESTEPS = 1000


def time_grid(
    steps: int, *, shift: float = 1.0, smallest: float = 0.0, spacing: Spacing = "uniform"
) -> Float[Array, "n"]:
    """`steps + 1` times from 1 (noise) to 0 (data), spaced and then shifted.

    Args:
        steps: network evaluations.
        shift: see `flow.shift_times`; above 1 it spends more steps near the noise.
        smallest: no step starts below this time. Networks that were trained on discrete noise levels know nothing
            under their lowest one (0.048 for CogVideoX-2b, 0.028 for 5b): the last step goes from there straight to 0.
        spacing: "uniform", or "cosine": denser at both ends, where the signal-to-noise ratio changes fastest, which
            suits solvers of second order that step along it.

    Raises:
        ValueError: for less than one step, or `smallest` outside [0, 1).
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling needs at least 1")
    if not 0 <= smallest < 1:
        raise ValueError(f"smallest is {smallest}; it must lie in [0, 1)")

    def spaced(x):
        return (1 - jnp.cos(jnp.pi * x)) / 2 if spacing == "cosine" else x

    def place(x):
        return jnp.arccos(1 - 2 * x) / jnp.pi if spacing == "cosine" else x

    last = jnp.maximum(shift_times(spaced(jnp.float32(1 / steps)), shift), smallest)
    times = shift_times(spaced(jnp.linspace(1.0, place(shift_times(last, 1 / shift)), steps)), shift)
    # Rounding must not carry the last start below the limit, nor the first off 1.
    return jnp.append(jnp.maximum(times, smallest).at[0].set(1.0), 0.0)


def timestep_grid(steps: int, shift: float) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n-1"]]:
    """The `steps + 1` times of a flow sampled as Wan is, and what the network is told at each step but the last time.

    Those of diffusers' `UniPCMultistepScheduler` with `use_flow_sigmas`: the time that is told is a whole number of
    thousandths, rounded down.

    Raises:
        ValueError: for less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling needs at least 1")
    times = np.linspace(1.0, 1 / _TIMESTEPS, steps + 1)[:-1]
    times = np.minimum(shift * times / (1 + (shift - 1) * times), _LARGEST)
    return np.append(times, 0.0), np.floor(times * _TIMESTEPS) / _TIMESTEPS


class Trajectory(NamedTuple):
    """Where sampling is, and what a step of second order needs of the steps before."""

    z: Float[Array, "B *shape"]
    # Where the step that led to `z` started.
    origin: Float[Array, "B *shape"]
    # The network's predictions of the data, one step and two steps before.
    x1: Float[Array, "B *shape"]
    x2: Float[Array, "B *shape"]


def start(noise: Float[Array, "B *shape"]) -> Trajectory:
    """Before the first step."""
    return Trajectory(noise, noise, jnp.zeros_like(noise), jnp.zeros_like(noise))


def solver_steps(
    solver: Solver, times: Float[Array | np.ndarray, "n"], told: Float[np.ndarray, "n-1"] | None = None
) -> Float[np.ndarray, "n-1 10"]:
    """The time that the network is told in each step, the step's time, and its factors, for `solver_step`.

    Args:
        solver: "euler", of first order, or "unipc" (arXiv 2302.04867): the multistep predictor and corrector of second
            order in data prediction with B(h) = exp(-h) - 1, of first order in the first and the last step.
        times: falling, from at most 1 to at least 0.
        told: what the network is told in their place; the times themselves if None.

    Raises:
        ValueError: for times without a step, or that do not fall from 1 to 0.
    """
    times = np.asarray(times, np.float64)
    if len(times) < 2:
        raise ValueError(f"times has {len(times)} entries; sampling needs at least 2, for one step")
    if not (np.diff(times) < 0).all() or times[0] > 1 or times[-1] < 0:
        raise ValueError(f"times goes from {times[0]:g} to {times[-1]:g}; it must fall, and lie in [0, 1]")
    factors = _euler(times) if solver == "euler" else _unipc(times)
    told = times[:-1] if told is None else told
    return np.column_stack([told, times[:-1], factors]).astype(np.float32)


def _euler(times: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n-1 8"]:
    share = times[1:] / times[:-1]
    keep = np.tile([1.0, 0.0, 0.0, 0.0, 0.0], (len(share), 1))
    return np.column_stack([keep, share, 1 - share, 0 * share])


def _unipc(times: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n-1 8"]:
    signal, noise = 1 - np.minimum(times, _LARGEST), np.minimum(times, _LARGEST)
    with np.errstate(divide="ignore"):
        snr = np.log(signal) - np.log(noise)  # half the logarithm of the signal-to-noise ratio; infinite at time 0
    count, rows = len(times) - 1, []
    orders = [min(2, i + 1, count - i) for i in range(count)]
    for i, order in enumerate(orders):
        corrector = [1.0, 0.0, 0.0, 0.0, 0.0]
        if i > 0:
            h = snr[i] - snr[i - 1]
            gain = -signal[i] * np.expm1(-h)
            before, now = 0.0, 0.5  # weights of the slopes to the prediction before the origin's and to the present one
            if orders[i - 1] == 2:
                ratio = (snr[i - 2] - snr[i - 1]) / h
                first = (np.expm1(-h) / -h - 1) / np.expm1(-h)
                second = 2 * ((np.expm1(-h) / -h - 1) / -h - 0.5) / np.expm1(-h)
                before, now = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [first, second])
                before /= ratio
            corrector = [0.0, noise[i] / noise[i - 1], gain * now, gain * (1 - now - before), gain * before]
        h = snr[i + 1] - snr[i]
        gain = -signal[i + 1] * np.expm1(-h)
        slope = 0.5 * h / (snr[i - 1] - snr[i]) if order == 2 else 0.0
        rows.append([*corrector, noise[i + 1] / noise[i], gain * (1 - slope), gain * slope])
    return np.asarray(rows)


def solver_step(
    velocity: Callable[[Array, Array], Array], state: Trajectory, step: Float[Array | np.ndarray, "10"]
) -> Trajectory:
    """One step, one call of `velocity(z, time: B)`; `step` is a row of `solver_steps`."""
    told, time, *factors = (step[i] for i in range(10))
    v = velocity(state.z, jnp.broadcast_to(told, state.z.shape[:1]))
    x = state.z - time * v.astype(state.z.dtype)
    terms = (state.z, state.origin, x, state.x1, state.x2)
    z = sum(factor * term for factor, term in zip(factors[:5], terms, strict=True))
    following = factors[5] * z + factors[6] * x + factors[7] * state.x1
    return Trajectory(following, z, x, state.x1)


def solve(
    velocity: Callable[[Array, Array], Array], noise: Float[Array, "B *shape"], steps: Float[Array | np.ndarray, "n 10"]
) -> Float[Array, "B *shape"]:
    """All steps as one `lax.scan`: the network is compiled once, whatever their number."""
    return jax.lax.scan(lambda state, step: (solver_step(velocity, state, step), None), start(noise), steps)[0].z


def sample_steps(
    step: Callable[[Trajectory, Array], Trajectory], noise: Float[Array, "B *shape"], steps: Float[np.ndarray, "n 10"]
) -> Iterator[Float[Array, "B *shape"]]:
    """The same as a Python loop that yields the state after every step, for progress bars and previews.

    `step(trajectory, row)` should be jitted, with the parameters among its arguments, not in its closure.
    """
    state = start(noise)
    for row in steps:
        state = step(state, row)
        yield state.z
