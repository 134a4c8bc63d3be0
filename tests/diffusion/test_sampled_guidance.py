"""The factors that a sampler really uses, whatever it is asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from cinema_jax.cinema import Cinema
from cinema_jax.config import Config
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.diffusion.config import DISCRETE_SOLVERS, SOLVERS
from cinema_jax.diffusion.guidance import FULL, REFERENCES_ONLY, UNCONDITIONAL, branch_factors
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from cinema_jax.sampling.requests import Settings
from cinema_jax.sampling.sampler import Sampler

SCALES = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 6.0]), st.floats(-20, 20))


def sampler(dynamic: bool, prediction: str) -> Sampler:
    """One of the tiny config's transformer, which asks nothing of the other parts to say how it guides."""
    config: Config = tiny_config()
    flow = dataclasses.replace(config.flow, dynamic_guidance=dynamic, prediction=prediction)
    cinema = Cinema(dataclasses.replace(config, flow=flow), {})
    return Sampler(cinema, {}, Preprocessor(cinema.config, None, build_word_tokenizer(["a"])))


SAMPLERS = {
    (dynamic, prediction): sampler(dynamic, prediction)
    for dynamic in (False, True)
    for prediction in ("velocity", "v_prediction")
}


@given(
    solver=st.sampled_from(SOLVERS),
    dynamic=st.booleans(),
    prediction=st.sampled_from(["velocity", "v_prediction"]),
    text=SCALES,
    reference=SCALES,
    steps=st.integers(1, 60),
)
def test_the_factors_sum_to_1_in_every_step(solver, dynamic, prediction, text, reference, steps):
    if solver in DISCRETE_SOLVERS:
        prediction = "v_prediction"
    asked = Settings(solver, "uniform", steps, text, reference, 5, 32, 32, 1.0)
    branches, factors = SAMPLERS[dynamic, prediction].guidance(asked)
    assert factors.shape == (steps, len(branches))
    np.testing.assert_allclose(factors.sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (6.0, 1.0), (1.0, 6.0), (6.0, 3.0), (0.0, 3.0)])
@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_a_network_that_ignores_its_conditions_samples_the_same_at_every_scale(solver, scales):
    """In place of the tiny transformer stands one number, so that only the factors can change the result."""
    one = sampler(True, "v_prediction")
    one.cinema.predict_v = lambda params, z, time, told: 0.5 * z + time.reshape(-1, 1, 1, 1, 1) / 1000
    keys = jnp.stack([jax.random.key(0, impl="threefry2x32")])
    noise = jnp.linspace(-1, 1, 6).reshape(1, 1, 1, 2, 3)

    def sampled(*scales):
        asked = Settings(solver, "uniform", 5, *scales, 5, 32, 32, 1.0)
        branches, factors = one.guidance(asked)
        told = dict.fromkeys(branches, jnp.zeros((1, 1)))
        *_, latents = one._discrete({}, noise, keys, asked, told, factors)
        return latents

    np.testing.assert_allclose(sampled(*scales), sampled(0.0, 0.0), rtol=1e-4, atol=1e-5)


def test_a_branch_that_is_needed_but_not_computed_is_refused():
    assert branch_factors([UNCONDITIONAL, REFERENCES_ONLY, FULL], 4, 4) == [-3, 0, 4]
    with pytest.raises(ValueError, match=r"branches are .*; the scales 4 and 3 need"):
        branch_factors([FULL], 4, 3)
