"""The times that training draws and sampling visits, against those that the transformer was pretrained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinema_jax.config import Config, default, parse, to_dict
from cinema_jax.diffusion import flow
from cinema_jax.diffusion.discrete import as_velocity
from cinema_jax.diffusion.schedule import NoiseSchedule
from cinema_jax.errors import InputError
from cinema_jax.training.stages.flow import training_times
from configs import cogvideox_2b, cogvideox_5b

RELEASED = {"2b": cogvideox_2b, "5b": cogvideox_5b}


def released(name: str) -> Config:
    """A config for accelerators."""
    values = RELEASED[name].get_config()
    values.data.path = "videos"
    return parse(values)


def drawn(config: Config, count: int, start: int = 0) -> np.ndarray:
    """The times of `count` examples of `finetune`, from a global index on."""
    indices = jnp.arange(start, start + count)
    keys = flow.example_keys(jax.random.key(0, impl="threefry2x32"), indices)
    return np.asarray(training_times(config, "finetune", keys, indices))


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_draw_noisy_times_as_often_as_their_pretraining(name):
    config = released(name)
    times, levels = drawn(config, 64 * 64), config.schedule.flow_times()
    for timestep in (500, 750, 900, 950):
        assert np.mean(times >= np.float32(levels[timestep])) == pytest.approx(1 - timestep / 1000, abs=0.002)


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_sample_at_the_timesteps_of_the_pipeline(name):
    config = released(name)
    assert config.flow.spacing == "schedule"
    levels, grid = config.schedule.flow_times(), config.schedule.time_grid(50)
    visited = np.searchsorted(levels, grid[:-1])
    np.testing.assert_array_equal(visited, np.arange(999, 0, -20))
    assert grid[-1] == 0


@pytest.mark.parametrize("times", ["logit_normal", "uniform", "schedule"])
def test_the_times_of_a_batch_are_spread_over_their_distribution(times):
    values = default()
    values.flow.times, values.flow.stratified, values.flow.prediction = times, True, "v_prediction"
    values.flow.shift, values.finetune.batch_size = 3.0, 16
    config = parse(values)
    values.flow.stratified = False
    alone = np.sort(drawn(parse(values), 64 * 16))
    for step in (0, 3):
        batch = np.sort(drawn(config, 16, start=16 * step))
        # One between each two neighbouring quantiles of times that are drawn by themselves, as far as those are exact.
        share = np.searchsorted(alone, batch) / len(alone)
        np.testing.assert_allclose(share, (np.arange(16) + 0.5) / 16, atol=0.5 / 16 + 0.05)
    # Microbatches have some of a batch's rows each.
    values.flow.stratified, values.finetune.microbatches = True, 4
    np.testing.assert_array_equal(drawn(parse(values), 4, start=8), drawn(config, 16)[8:12])


def test_without_strata_logit_normal_times_are_those_of_their_function():
    config = parse(default())
    keys = flow.example_keys(jax.random.key(0, impl="threefry2x32"), jnp.arange(8))
    np.testing.assert_array_equal(drawn(config, 8), flow.logit_normal_times(keys))


def test_the_weighted_error_is_the_error_of_v():
    """As the transformer was pretrained: of the same prediction at the same noise level."""
    schedule, rng = NoiseSchedule(), np.random.default_rng(0)
    x, noise, said = (jnp.asarray(rng.standard_normal((5, 2, 3, 3, 4)), jnp.float32) for _ in range(3))
    timesteps = np.array([0, 200, 500, 900, 999])
    times = jnp.asarray(schedule.flow_times()[timesteps], jnp.float32)
    velocity = as_velocity(lambda z, timestep: said, schedule)(flow.interpolate(x, noise, times), times)
    alphas = schedule.alphas_cumprod()[timesteps].reshape(-1, 1, 1, 1, 1)
    v = np.sqrt(alphas) * noise - np.sqrt(1 - alphas) * x
    expected = np.mean((said - v) ** 2, axis=(1, 2, 3, 4))
    weighted = flow.flow_loss(velocity, x, noise) * flow.v_weight(times)
    np.testing.assert_allclose(weighted, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["times", "spacing"])
def test_a_flow_has_no_schedule(name):
    values = to_dict(Config())
    values["flow"][name] = "schedule"
    with pytest.raises(InputError, match=rf"config\.flow\.{name} is 'schedule', which needs a noise schedule"):
        parse(values)


def test_a_noise_schedule_has_no_timesteps_of_a_flow():
    values = to_dict(Config())
    values["flow"] |= {"spacing": "timesteps", "prediction": "v_prediction"}
    with pytest.raises(InputError, match=r"config\.flow\.spacing is 'timesteps', which is that of a flow"):
        parse(values)
