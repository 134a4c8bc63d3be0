"""The flow's path, times and loss against closed forms; its random numbers against the layout of the batch."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import process_environment

from cinema_jax.diffusion import flow

KEY = jax.random.key(3)


def keys(count: int):
    return flow.example_keys(KEY, jnp.arange(count))


def test_path_runs_from_data_to_noise_with_the_target_as_its_slope():
    x, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 2))
    times = jnp.array([0.0, 0.3, 1.0])
    z = flow.interpolate(x, noise, times)
    np.testing.assert_array_equal(z[0], x[0])
    np.testing.assert_array_equal(z[2], noise[2])
    slope = (flow.interpolate(x, noise, times + 0.5) - z) / 0.5
    np.testing.assert_allclose(slope, flow.velocity_target(x, noise), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draw", [flow.logit_normal_times, lambda k: flow.sample_noise(k, (3, 2))])
def test_random_numbers_follow_the_example_and_not_its_row(draw):
    whole = draw(flow.example_keys(KEY, jnp.arange(10, 18)))
    rows = jnp.array([17, 11, 14])
    np.testing.assert_allclose(jax.jit(draw)(flow.example_keys(KEY, rows)), whole[rows - 10], rtol=1e-6)


def test_times_and_noise_of_one_key_are_independent():
    k = keys(4000)
    normal = jax.scipy.special.logit(flow.logit_normal_times(k))
    noise = flow.sample_noise(k, (1,))[:, 0]
    assert abs(np.corrcoef(normal, noise)[0, 1]) < 0.05


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_generators_that_depend_on_the_row_are_refused(impl):
    with pytest.raises(ValueError, match=impl):
        flow.example_keys(jax.random.key(0, impl=impl), jnp.arange(2))


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.5, 0.8, 3.0)])
def test_logit_normal_times_have_the_stated_quantiles(mean, std, shift):
    times = flow.logit_normal_times(keys(20_000), mean=mean, std=std, shift=shift)
    for probability in 0.1, 0.5, 0.9:
        logit = mean + std * jax.scipy.stats.norm.ppf(probability)
        # The shift multiplies t / (1 - t) by s: in logits it is an addition.
        expected = jax.nn.sigmoid(logit + jnp.log(shift))
        assert np.quantile(times, probability) == pytest.approx(float(expected), abs=0.01)


def test_shift_keeps_the_ends_and_is_undone_by_its_inverse():
    times = jnp.linspace(0, 1, 11)
    shifted = flow.shift_times(times, 3.0)
    np.testing.assert_allclose(shifted[jnp.array([0, 5, 10])], [0, 0.75, 1], rtol=1e-6)
    np.testing.assert_allclose(flow.shift_times(shifted, 1 / 3.0), times, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_shift_is_refused_by_value(shift):
    with pytest.raises(ValueError, match=f"shift is {shift}"):
        flow.shift_times(jnp.zeros(1), shift)


def test_bad_spread_is_refused_by_value():
    with pytest.raises(ValueError, match=r"std is -2\.0"):
        flow.logit_normal_times(keys(1), std=-2.0)


def test_loss_is_the_mean_square_of_each_sample_in_fp32():
    x, noise, predicted = np.random.default_rng(0).normal(size=(3, 2, 3, 2, 2, 4)).astype(np.float32)
    expected = ((predicted - (noise - x)) ** 2).reshape(2, -1).mean(axis=1)
    np.testing.assert_allclose(
        flow.flow_loss(jnp.array(predicted), jnp.array(x), jnp.array(noise)), expected, rtol=1e-5
    )
    half = flow.flow_loss(jnp.array(predicted, jnp.bfloat16), jnp.array(x), jnp.array(noise))
    assert half.dtype == jnp.float32


def test_weights_say_which_errors_count():
    x, noise, predicted = np.random.default_rng(0).normal(size=(3, 2, 3, 2, 2, 4)).astype(np.float32)
    one = np.zeros((2, 3, 2, 2), np.float32)
    one[:, 1, 0, 1] = 7.0
    expected = ((predicted - (noise - x)) ** 2)[:, 1, 0, 1].mean(axis=-1)
    arrays = [jnp.array(a) for a in (predicted, x, noise)]
    np.testing.assert_allclose(flow.flow_loss(*arrays, jnp.array(one)), expected, rtol=1e-5)
    alike = flow.flow_loss(*arrays, jnp.full((2, 3, 2, 2), 3.0))
    np.testing.assert_allclose(alike, flow.flow_loss(*arrays), rtol=1e-5)


def test_evaluation_noise_is_fixed_by_example_and_time_alone():
    noise = flow.evaluation_noise(jnp.array([5, 9]), 2, (3, 4))
    np.testing.assert_array_equal(flow.evaluation_noise(jnp.array([9]), 2, (3, 4))[0], noise[1])
    assert not np.allclose(flow.evaluation_noise(jnp.array([9]), 3, (3, 4))[0], noise[1])
    np.testing.assert_array_equal(
        jax.lax.map(lambda i: flow.evaluation_noise(jnp.array([5, 9]), i, (3, 4)), jnp.arange(3))[2], noise
    )
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(flow.evaluation_noise(jnp.array([5, 9]), 2, (3, 4)), noise)


def test_shapes_that_would_be_stretched_to_fit_are_refused_without_a_checker_too():
    code = "import jax.numpy as jnp\nfrom cinema_jax.diffusion.flow import interpolate\n"
    code += "interpolate(jnp.ones((2, 3)), jnp.ones((1, 3)), jnp.ones(2))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=False)
    assert "AssertionError" in done.stderr
