"""From noise to data along a velocity field, over a fixed grid of times."""

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cinema_jax.diffusion.flow import shift_times


def time_grid(steps: int, *, shift: float = 1.0, smallest: float = 0.0) -> Float[Array, "n"]:
    """`steps + 1` times from 1 (noise) to 0 (data), evenly spaced and then shifted.

    Args:
        steps: network evaluations.
        shift: see `flow.shift_times`; above 1 it spends more steps near the noise.
        smallest: no step starts below this time. Networks that were trained on discrete noise levels know nothing
            under their lowest one (0.048 for CogVideoX-2b, 0.028 for 5b): the last step goes from there straight to 0.

    Raises:
        ValueError: for less than one step, or `smallest` outside [0, 1).
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling needs at least 1")
    if not 0 <= smallest < 1:
        raise ValueError(f"smallest is {smallest}; it must lie in [0, 1)")
    last = jnp.maximum(shift_times(jnp.float32(1 / steps), shift), smallest)
    times = shift_times(jnp.linspace(1.0, shift_times(last, 1 / shift), steps), shift)
    # Rounding must not carry the last start below the limit, nor the first off 1.
    return jnp.append(jnp.maximum(times, smallest).at[0].set(1.0), 0.0)


def euler_step(
    velocity: Callable[[Array, Array], Array],
    z: Float[Array, "B *shape"],
    time: Float[Array, ""],
    next_time: Float[Array, ""],
) -> Float[Array, "B *shape"]:
    """`z + (next_time - time) v(z, time)`: one network call, in either direction of time."""
    v = velocity(z, jnp.broadcast_to(time, z.shape[:1]))
    return z + (next_time - time) * v.astype(z.dtype)


def euler(
    velocity: Callable[[Array, Array], Array], noise: Float[Array, "B *shape"], times: Float[Array, "n"]
) -> Float[Array, "B *shape"]:
    """Follow `velocity(z, time: B)` from `noise` at `times[0]` to `times[-1]`.

    One `lax.scan`: the network is compiled once, whatever the number of steps. Ascending times lead from data to noise.
    """
    _check_times(times)

    def step(z, interval):
        return euler_step(velocity, z, *interval), None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def sample_steps(
    step: Callable[[Array, Array, Array], Array], noise: Float[Array, "B *shape"], times: Float[Array, "n"]
) -> Iterator[Float[Array, "B *shape"]]:
    """The same as a Python loop that yields the state after every step, for progress bars and previews.

    `step(z, time, next_time)` should be jitted, with the parameters among its arguments, not in its closure.
    """
    _check_times(times)

    def loop(z):
        for time, next_time in itertools.pairwise(times):
            z = step(z, time, next_time)
            yield z

    return loop(noise)


def _check_times(times: Array) -> None:
    if len(times) < 2:
        raise ValueError(f"times has {len(times)} entries; sampling needs at least 2, for one step")
