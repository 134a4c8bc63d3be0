"""Samplers on Gaussian data, whose velocity field and flow map are known.

Data N(mu, sigma^2) and noise N(0, 1) give z_t ~ N((1-t) mu, s_t^2) with s_t^2 = (1-t)^2 sigma^2 + t^2. The flow keeps
quantiles, so noise e maps to mu + sigma e, along the velocity -mu + (s_t' / s_t) (z - (1-t) mu).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from cinema_jax.diffusion.config import FLOW_SOLVERS
from cinema_jax.diffusion.flow import shift_times
from cinema_jax.diffusion.samplers import sample_steps, solve, solver_step, solver_steps, time_grid, timestep_grid

MU, SIGMA = jnp.array([[1.5, -0.5]]), jnp.array([[0.3, 0.8]])
NOISE = jnp.array([[-2.0, 0.3], [0.1, 1.0], [1.7, -0.8]])


def gaussian_velocity(z, time):
    t = time[:, None]
    variance = (1 - t) ** 2 * SIGMA**2 + t**2
    return -MU + (t - (1 - t) * SIGMA**2) / variance * (z - (1 - t) * MU)


def follow(velocity, times, solver="euler"):
    return solve(velocity, NOISE, solver_steps(solver, times))


def error(steps: int, solver: str, shift: float = 1.0) -> float:
    got = follow(gaussian_velocity, time_grid(steps, shift=shift), solver)
    return float(jnp.abs(got - (MU + SIGMA * NOISE)).max())


@pytest.mark.parametrize(("solver", "order", "shift"), [("euler", 1, 1.0), ("euler", 1, 3.0), ("unipc", 2, 1.0)])
def test_solvers_converge_to_the_exact_map_at_their_order(solver, order, shift):
    errors = [error(steps, solver, shift) for steps in (40, 80, 160)]
    assert errors[-1] < 0.02
    for coarse, fine in itertools.pairwise(errors):
        assert np.log2(coarse / fine) > order - 0.3


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_second_order_is_nearer_at_half_the_steps(shift):
    assert error(40, "unipc", shift) < 0.25 * error(80, "euler", shift)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 3.0), (5, 1.0), (12, 3.0)])
def test_unipc_is_that_of_diffusers(steps, shift):
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )
    scheduler.set_timesteps(steps)
    z = torch.from_numpy(np.array(NOISE))
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        v = np.array(gaussian_velocity(jnp.asarray(z.numpy()), jnp.full(len(z), float(sigma))))
        z = scheduler.step(torch.from_numpy(v), time, z).prev_sample
    got = follow(gaussian_velocity, scheduler.sigmas.numpy(), "unipc")
    np.testing.assert_allclose(got, z.numpy(), atol=2e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 40, 50])
def test_times_and_timesteps_of_wan_are_those_of_diffusers(steps, shift):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    times, told = timestep_grid(steps, shift)
    np.testing.assert_array_equal(times.astype(np.float32), scheduler.sigmas.numpy())
    np.testing.assert_array_equal(np.round(1000 * told), scheduler.timesteps.numpy())
    rows = solver_steps("unipc", times, told)
    # As the network reads it: no rounding may turn 999 into 998.
    np.testing.assert_allclose(1000 * rows[:, 0], scheduler.timesteps.numpy(), atol=1e-4)


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_a_network_that_is_told_timesteps_is_sampled_as_by_diffusers(shift):
    """The network is told another time than the one that the step is made of."""

    def velocity(z, time):
        return jnp.sin(3 * z) * time[:, None] + jnp.cos(20 * time)[:, None]

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(10)
    z = torch.from_numpy(np.array(NOISE))
    for timestep in scheduler.timesteps:
        v = np.array(velocity(jnp.asarray(z.numpy()), jnp.full(len(z), float(timestep) / 1000)))
        z = scheduler.step(torch.from_numpy(v), timestep, z).prev_sample
    got = solve(velocity, NOISE, solver_steps("unipc", *timestep_grid(10, shift)))
    np.testing.assert_allclose(got, z.numpy(), atol=2e-5)


@pytest.mark.parametrize("solver", FLOW_SOLVERS)
def test_straight_paths_are_exact_in_one_step(solver):
    # All data in one point: every path is a straight line.
    got = follow(lambda z, time: (z - MU) / time[:, None], time_grid(1), solver)
    np.testing.assert_allclose(got, jnp.broadcast_to(MU, NOISE.shape), atol=1e-6)


@pytest.mark.parametrize("solver", FLOW_SOLVERS)
def test_python_loop_yields_every_state_and_ends_like_the_scan(solver):
    steps = solver_steps(solver, time_grid(6, shift=2.0))
    states = list(sample_steps(jax.jit(lambda *a: solver_step(gaussian_velocity, *a)), NOISE, steps))
    assert len(states) == 6
    np.testing.assert_allclose(states[-1], solve(gaussian_velocity, NOISE, steps), rtol=1e-5)
    np.testing.assert_allclose(states[2], solve(gaussian_velocity, NOISE, steps[:3]), rtol=1e-5)


def test_network_is_traced_once_whatever_the_number_of_steps():
    calls = []

    def velocity(z, time):
        calls.append(time.shape)
        return gaussian_velocity(z, time)

    jax.jit(lambda steps: solve(velocity, NOISE, steps))(solver_steps("unipc", time_grid(37)))
    assert calls == [(3,)]


def test_half_precision_velocity_keeps_the_state_in_fp32():
    got = follow(lambda z, t: gaussian_velocity(z, t).astype(jnp.bfloat16), time_grid(4))
    assert got.dtype == jnp.float32


def test_grid_runs_from_one_to_zero_evenly_before_the_shift():
    np.testing.assert_allclose(time_grid(4), [1, 0.75, 0.5, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(time_grid(4, shift=3.0), shift_times(jnp.linspace(1, 0, 5), 3.0), atol=1e-6)
    np.testing.assert_array_equal(time_grid(1, shift=5.0), [1, 0])


def test_cosine_spacing_is_denser_at_both_ends():
    steps = -np.diff(time_grid(10, spacing="cosine"))
    np.testing.assert_allclose(steps, steps[::-1], atol=1e-6)
    assert (np.diff(steps[:5]) > 0).all()


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spacing", ["uniform", "cosine"])
def test_no_step_starts_below_the_smallest_time(steps, shift, spacing):
    times = np.asarray(time_grid(steps, shift=shift, smallest=0.048, spacing=spacing))
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


@pytest.mark.parametrize(
    ("solver", "times", "message"),
    [
        ("euler", [1.0], "at least 2"),
        ("unipc", [0.0, 0.5, 1.0], "goes from 0 to 1; it must fall"),
        ("euler", [2.0, 0.0], "lie in"),
    ],
)
def test_bad_steps_are_refused_by_value(solver, times, message):
    with pytest.raises(ValueError, match=message):
        solver_steps(solver, np.array(times))
