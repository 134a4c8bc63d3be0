import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.devices import sharding
from cinema_jax.training import state
from cinema_jax.training.optimizer import make_optimizer

PARAMS = {"dit/to_q/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "dit/to_q/bias": np.ones(3, np.float32)}
PATHS = ["aligner/latents", "aligner/o/kernel", "dit/to_q/kernel"]


def created():
    return state.create(PARAMS, make_optimizer(OptimizerConfig(), 10), sharding.make_mesh(), seed=0)


def test_abstract_state_is_the_created_one():
    expected = state.abstract(PARAMS, make_optimizer(OptimizerConfig(), 10), sharding.make_mesh())

    def describe(tree):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding), tree)

    assert describe(created()) == describe(expected)


def test_created_parameters_and_average_are_those_given():
    new = created()
    for part in (new.params, new.ema):
        jax.tree.map(np.testing.assert_array_equal, part, PARAMS)


def test_a_state_that_is_consumed_takes_nothing_of_its_callers_with_it():
    mesh = sharding.make_mesh()
    params = sharding.place({path: jnp.asarray(x) for path, x in PARAMS.items()}, mesh)
    new = state.create(params, make_optimizer(OptimizerConfig(), 10), mesh, seed=0)
    consumed = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)(new)
    assert all(x.is_deleted() for x in jax.tree.leaves((new.params, new.ema)))
    for path, x in PARAMS.items():
        np.testing.assert_array_equal(params[path], x)
        np.testing.assert_array_equal(consumed.ema[path], x + 1)


def test_average_follows_the_closed_form():
    ema, decay = {"w": jnp.zeros(())}, 0.5
    expected = 0.0
    for step in range(12):
        value = float(step + 1)
        ema = state.update_ema(ema, {"w": jnp.float32(value)}, jnp.int32(step), decay)
        rate = min(decay, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * value
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-6)


def test_sample_keys_do_not_depend_on_the_row():
    key = jax.random.key_data(jax.random.key(0))
    whole = jax.random.key_data(state.sample_keys(key, jnp.arange(8)))
    part = jax.random.key_data(state.sample_keys(key, jnp.array([5, 2])))
    np.testing.assert_array_equal(part, whole[jnp.array([5, 2])])


def test_trainable_splits_in_order():
    assert state.trainable(PATHS, ["dit/.*", "aligner/o/.*"]) == (PATHS[1:], PATHS[:1])


def test_trainable_pattern_must_match_the_whole_path():
    assert state.trainable([*PATHS, "old_dit/to_q/kernel"], ["dit/.*"])[0] == ["dit/to_q/kernel"]


@pytest.mark.parametrize("pattern", ["transformer/.*", "dit/("])
def test_useless_pattern_is_refused_by_name(pattern):
    with pytest.raises(ValueError, match="trainable pattern") as error:
        state.trainable(PATHS, ["aligner/.*", pattern])
    assert repr(pattern) in str(error.value)
