"""Signatures are checked while tests run (conftest.py): in which ways a wrong shape shows."""

import functools

import jax.numpy as jnp
import jaxtyping
import pytest
from beartype.roar import BeartypeCallHintViolation

from cinema_jax.data.critters import motion
from cinema_jax.diffusion.discrete import as_velocity
from cinema_jax.diffusion.flow import velocity_target
from cinema_jax.diffusion.schedule import NoiseSchedule
from cinema_jax.models.layers import sinusoidal_embedding

refused = functools.partial(pytest.raises, (BeartypeCallHintViolation, jaxtyping.TypeCheckError))


def test_a_letter_is_of_one_size_in_a_signature_and_may_be_another_at_the_next_call():
    for size in (2, 3):
        assert velocity_target(jnp.zeros((size, 4)), jnp.ones((size, 4))).shape == (size, 4)
    with refused():
        velocity_target(jnp.zeros((2, 4)), jnp.zeros((2, 5)))


def test_what_is_returned_has_the_size_that_an_argument_says():
    assert sinusoidal_embedding(jnp.zeros(3), 4).shape == (3, 4)
    with refused():
        sinusoidal_embedding(jnp.zeros(3), 5)


def test_what_a_function_makes_is_checked_where_it_says_shapes():
    velocity = as_velocity(lambda z, timestep: z, NoiseSchedule())
    assert velocity(jnp.ones((2, 4)), jnp.ones(2)).shape == (2, 4)
    with refused():
        velocity(jnp.ones((2, 4)), jnp.ones(1))


def test_types_without_a_shape_are_checked_too():
    with refused():
        motion.stand(0.0, 0.0, "left")
