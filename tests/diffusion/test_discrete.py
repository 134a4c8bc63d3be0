"""CogVideoX' schedule and schedulers against diffusers', and v-prediction as a flow against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from cinema_jax.diffusion.discrete import as_velocity, discrete_start, discrete_step, discrete_steps, dynamic_guidance
from cinema_jax.diffusion.samplers import solve, solver_steps, time_grid
from cinema_jax.diffusion.schedule import NoiseSchedule, schedule_from_hf, schedule_to_hf
from cinema_jax.errors import InputError

TWO_B = NoiseSchedule()
FIVE_B = NoiseSchedule(snr_shift_scale=1.0)
OTHER = NoiseSchedule(beta_start=0.001, beta_end=0.02, snr_shift_scale=2.0, rescale_betas_zero_snr=False)
SCHEDULES = {"2b": TWO_B, "5b": FIVE_B, "other": OTHER}
CLASSES = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
SHAPE = (2, 3, 4)


def theirs(scheduler, schedule):
    return CLASSES[scheduler].from_config(schedule_to_hf(schedule, scheduler))


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_levels_equal_diffusers(name):
    expected = theirs("ddim", SCHEDULES[name]).alphas_cumprod.numpy()
    np.testing.assert_allclose(SCHEDULES[name].alphas_cumprod(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (TWO_B, (0.99745433, 0.38905371, 0.09532810, 0.01083890, 6e-8, 0)),
        (FIVE_B, (0.99915000, 0.65245702, 0.24101878, 0.03279912, 2e-7, 0)),
    ],
)
def test_released_signal_levels(schedule, levels):
    np.testing.assert_allclose(schedule.alphas_cumprod()[[0, 250, 500, 750, 998, 999]], levels, atol=5e-8)


def test_the_least_noise_in_flow_time():
    assert TWO_B.flow_times()[[0, -1]] == pytest.approx([0.048, 1], abs=5e-4)
    assert FIVE_B.flow_times()[[0, -1]] == pytest.approx([0.028, 1], abs=5e-4)


@pytest.mark.parametrize("steps", [1, 7, 30, 50, 1000])
def test_timesteps_equal_diffusers(steps):
    reference = theirs("ddim", TWO_B)
    reference.set_timesteps(steps)
    np.testing.assert_array_equal(TWO_B.timesteps(steps), reference.timesteps.numpy())


def network(z, timestep):
    """Something smooth that depends on both."""
    return np.sin(3 * z) + 0.3 * z * timestep / 1000


@pytest.mark.parametrize("scheduler", CLASSES)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_schedulers_equal_diffusers(scheduler, name, steps):
    schedule, reference = SCHEDULES[name], theirs(scheduler, SCHEDULES[name])
    reference.set_timesteps(steps)
    start = np.random.default_rng(0).normal(size=SHAPE)
    z, old, drawn = torch.tensor(start), None, []
    for i, t in enumerate(reference.timesteps):
        v = torch.tensor(network(z.numpy(), t.item()))
        if scheduler == "ddim":
            z = reference.step(v, t, z, return_dict=False)[0]
            continue
        # It draws once, and again for a step of second order, which throws the first draw away.
        draws = torch.Generator().manual_seed(i)
        back = reference.timesteps[i - 1] if i else None
        twice = old is not None and t - 1000 // steps >= 0
        z, old = reference.step(v, old, t, back, z, generator=draws)
        draws = torch.Generator().manual_seed(i)
        noise = [torch.randn(SHAPE, generator=draws, dtype=torch.float64) for _ in range(1 + twice)]
        drawn.append(jnp.asarray(noise[-1].numpy(), jnp.float32))
    state = discrete_start(jnp.asarray(start, jnp.float32))
    for i, row in enumerate(discrete_steps(scheduler, schedule, steps)):
        state = discrete_step(
            lambda z, t: jnp.asarray(network(np.asarray(z), np.asarray(t)[:, None, None])),
            state,
            row,
            drawn[i] if drawn else None,
        )
    ours = state.z
    assert np.abs(np.asarray(ours) - z.numpy()).max() < 2e-4 * np.abs(z.numpy()).max()


def test_dynamic_guidance_goes_by_the_raw_timestep():
    assert dynamic_guidance(6.0, 50, 50) == 1
    assert dynamic_guidance(6.0, 50, 0) == pytest.approx(7)
    assert 1 <= dynamic_guidance(6.0, 50, 999) <= 7


def gaussian_v(schedule, mean, std):
    """The exact v of data that is normal in every number, at timesteps between the schedule's too.

    The signal level between two timesteps is that of the interpolated flow time, as `as_velocity` inverts it.
    """
    times = schedule.flow_times()

    def predict(z, timestep):
        t = jnp.interp(timestep, jnp.arange(len(times), dtype=jnp.float32), jnp.asarray(times, jnp.float32))
        t = t.reshape(-1, *(1,) * (z.ndim - 1))
        scale = jnp.sqrt((1 - t) ** 2 + t**2)
        alpha, sigma = (1 - t) / scale, t / scale
        variance = alpha**2 * std**2 + sigma**2
        data = mean + alpha * std**2 / variance * (z - alpha * mean)
        noise = sigma / variance * (z - alpha * mean)
        return alpha * noise - sigma * data

    return predict


@pytest.mark.parametrize("name", ["2b", "5b"])
def test_the_velocity_of_gaussian_data_is_the_closed_form(name):
    schedule, mean, std = SCHEDULES[name], 0.7, 0.4
    velocity = as_velocity(gaussian_v(schedule, mean, std), schedule)
    times = jnp.asarray(np.concatenate([schedule.flow_times()[[0, 1, 500, 998, 999]], [0.3, 0.77]]), jnp.float32)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(len(times), 5)), jnp.float32)
    t = times[:, None]
    variance = (1 - t) ** 2 * std**2 + t**2
    # E[noise - data | z] for z = (1 - t) data + t noise.
    expected = (t - (1 - t) * std**2) / variance * (z - (1 - t) * mean) - mean
    np.testing.assert_allclose(velocity(z, times), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["2b", "5b"])
def test_the_flow_of_gaussian_data_ends_at_the_data(name):
    """Every point of noise flows to mean + std * noise, as far as the schedule's least noise; from there to the mean of
    the data that may be behind it."""
    schedule, mean, std = SCHEDULES[name], 0.7, 0.4
    velocity = as_velocity(gaussian_v(schedule, mean, std), schedule)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    smallest = float(schedule.flow_times()[0])
    times = time_grid(200, smallest=smallest)
    ended = jax.jit(lambda noise: solve(velocity, noise, solver_steps("unipc", times)))(noise)
    signal = (1 - smallest) * std
    np.testing.assert_allclose(ended, mean + std * noise * signal / np.hypot(signal, smallest), atol=1e-3)


def test_ddim_and_the_flow_sampler_end_alike():
    schedule, mean, std = FIVE_B, -0.2, 0.5
    predict = gaussian_v(schedule, mean, std)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    step = jax.jit(lambda state, row: discrete_step(predict, state, row))
    state = discrete_start(noise)
    for row in discrete_steps("ddim", schedule, 500):
        state = step(state, row)
    np.testing.assert_allclose(state.z, mean + std * noise, atol=6e-3)


def test_config_goes_to_diffusers_and_back():
    for scheduler in CLASSES:
        for schedule in SCHEDULES.values():
            assert schedule_from_hf(dict(theirs(scheduler, schedule).config)) == schedule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type is 'epsilon'; only 'v_prediction'"),
        (
            {"timestep_spacing": "leading", "clip_sample": True},
            "clip_sample is True.*timestep_spacing is 'leading'",
        ),
        ({"surprise": 1}, "surprise is not known"),
        ({"_class_name": "DDPMScheduler"}, "_class_name is 'DDPMScheduler'; accepted: CogVideoXDDIMScheduler"),
        ({"beta_start": 0.5}, "beta_start 0.5 and beta_end 0.012 must rise"),
    ],
)
def test_other_schedules_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        schedule_from_hf(schedule_to_hf(TWO_B, "ddim") | changes)


def test_unsaid_fields_are_diffusers_defaults():
    with pytest.raises(InputError, match="prediction_type is 'epsilon'"):
        schedule_from_hf({})


def test_bad_numbers_are_refused():
    for steps in (0, 1001):
        with pytest.raises(InputError, match=f"steps is {steps}; accepted is 1 to 1000"):
            TWO_B.timesteps(steps)
    with pytest.raises(InputError, match="snr_shift_scale is 0"):
        dataclasses.replace(TWO_B, snr_shift_scale=0.0)
