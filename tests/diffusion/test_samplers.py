"""Samplers on Gaussian data, whose velocity field and flow map are known.

Data N(mu, sigma^2) and noise N(0, 1) give z_t ~ N((1-t) mu, s_t^2) with s_t^2 = (1-t)^2 sigma^2 + t^2. The flow keeps
quantiles, so noise e maps to mu + sigma e, along the velocity -mu + (s_t' / s_t) (z - (1-t) mu).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinema_jax.diffusion.flow import shift_times
from cinema_jax.diffusion.samplers import euler, euler_step, sample_steps, time_grid

MU, SIGMA = jnp.array([[1.5, -0.5]]), jnp.array([[0.3, 0.8]])
NOISE = jnp.array([[-2.0, 0.3], [0.1, 1.0], [1.7, -0.8]])


def gaussian_velocity(z, time):
    t = time[:, None]
    variance = (1 - t) ** 2 * SIGMA**2 + t**2
    return -MU + (t - (1 - t) * SIGMA**2) / variance * (z - (1 - t) * MU)


def error(steps: int, shift: float = 1.0) -> float:
    got = jax.jit(euler, static_argnums=0)(gaussian_velocity, NOISE, time_grid(steps, shift=shift))
    return float(jnp.abs(got - (MU + SIGMA * NOISE)).max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_converges_to_the_exact_map_at_first_order(shift):
    errors = [error(steps, shift) for steps in (100, 200, 400)]
    assert errors[-1] < 0.02
    for coarse, fine in itertools.pairwise(errors):
        assert np.log2(coarse / fine) == pytest.approx(1.0, abs=0.1)


def test_euler_back_to_noise_returns_where_it_started_at_first_order():
    def there_and_back(steps):
        times = time_grid(steps)
        data = euler(gaussian_velocity, NOISE, times)
        return float(jnp.abs(euler(gaussian_velocity, data, times[::-1]) - NOISE).max())

    coarse, fine = there_and_back(200), there_and_back(400)
    assert fine < 0.05
    assert np.log2(coarse / fine) == pytest.approx(1.0, abs=0.15)


def test_straight_paths_are_exact_in_one_step():
    # All data in one point: every path is a straight line.
    got = euler(lambda z, time: (z - MU) / time[:, None], NOISE, time_grid(1))
    np.testing.assert_allclose(got, jnp.broadcast_to(MU, NOISE.shape), atol=1e-6)


def test_python_loop_yields_every_state_and_ends_like_the_scan():
    times = time_grid(6, shift=2.0)
    states = list(sample_steps(jax.jit(lambda *a: euler_step(gaussian_velocity, *a)), NOISE, times))
    assert len(states) == 6
    np.testing.assert_allclose(states[-1], euler(gaussian_velocity, NOISE, times), rtol=1e-5)
    np.testing.assert_allclose(states[2], euler(gaussian_velocity, NOISE, times[:4]), rtol=1e-5)


def test_network_is_traced_once_whatever_the_number_of_steps():
    calls = []

    def velocity(z, time):
        calls.append(time.shape)
        return gaussian_velocity(z, time)

    jax.jit(lambda z: euler(velocity, z, time_grid(37)))(NOISE)
    assert calls == [(3,)]


def test_half_precision_velocity_keeps_the_state_in_fp32():
    got = euler(lambda z, t: gaussian_velocity(z, t).astype(jnp.bfloat16), NOISE, time_grid(4))
    assert got.dtype == jnp.float32


def test_grid_runs_from_one_to_zero_evenly_before_the_shift():
    np.testing.assert_allclose(time_grid(4), [1, 0.75, 0.5, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(time_grid(4, shift=3.0), shift_times(jnp.linspace(1, 0, 5), 3.0), atol=1e-6)
    np.testing.assert_array_equal(time_grid(1, shift=5.0), [1, 0])


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_no_step_starts_below_the_smallest_time(steps, shift):
    times = np.asarray(time_grid(steps, shift=shift, smallest=0.048))
    assert len(times) == steps + 1
    assert times[0] == 1
    assert times[-1] == 0
    assert times[-2] >= np.float32(0.048)
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 5, "shift": 0.0}, r"shift is 0\.0"),
        ({"steps": 5, "smallest": 1.0}, r"smallest is 1\.0"),
    ],
)
def test_bad_grids_are_refused_by_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        time_grid(**arguments)


def test_a_grid_without_a_step_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        euler(gaussian_velocity, NOISE, jnp.ones(1))
    with pytest.raises(ValueError, match="at least 2"):
        sample_steps(euler_step, NOISE, jnp.ones(1))
