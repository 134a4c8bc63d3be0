"""Muon: kernels move by orthogonal matrices of AdamW's size, everything else as with AdamW."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.errors import InputError
from cinema_jax.training.optimizer import make_optimizer

RNG = np.random.default_rng(0)
PARAMS = {
    "dit/blocks/to_q/kernel": jnp.array(RNG.normal(size=(2, 6, 4)), jnp.float32),
    "dit/blocks/to_q/bias": jnp.array(RNG.normal(size=(2, 4)), jnp.float32),
    "vae/conv/kernel": jnp.array(RNG.normal(size=(3, 3, 3, 2, 5)), jnp.float32),
}
GRADIENTS = {path: jnp.array(RNG.normal(size=p.shape), jnp.float32) for path, p in PARAMS.items()}


def first_directions(**options) -> dict:
    transform = make_optimizer(OptimizerConfig(weight_decay=0.0, **options), 10).transform
    return transform.update(GRADIENTS, transform.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize(
    ("path", "matrices"),
    [
        ("dit/blocks/to_q/kernel", lambda x: [*x]),  # one matrix a layer
        ("vae/conv/kernel", lambda x: [x.reshape(-1, x.shape[-1])]),  # a convolution: what it sees to what it says
    ],
)
def test_muon_moves_kernels_by_nearly_orthogonal_matrices_along_the_gradient(path, matrices):
    directions = first_directions(name="muon")
    gradients = matrices(np.asarray(GRADIENTS[path]))
    for direction, gradient in zip(matrices(np.asarray(directions[path])), gradients, strict=True):
        singular = np.linalg.svd(direction, compute_uv=False) / (0.2 * max(direction.shape) ** 0.5)
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        # The trace of an orthogonal matrix against the nearest one to the gradient is its rank.
        assert np.sum(direction * (u @ v)) / (0.2 * max(direction.shape) ** 0.5) > 0.7 * min(direction.shape)


def test_muon_moves_everything_else_like_adam():
    path = "dit/blocks/to_q/bias"
    adam = optax.scale_by_adam(0.9, 0.95, nesterov=True)
    expected = adam.update(GRADIENTS, adam.init(PARAMS))[0][path]
    np.testing.assert_allclose(first_directions(name="muon")[path], expected, rtol=1e-5)


def test_the_momentum_of_kernels_is_beta1():
    """Without any, what was before does not count."""
    transform = make_optimizer(OptimizerConfig(name="muon", weight_decay=0.0, beta1=0.0), 10).transform
    others = {path: -gradient[..., ::-1] for path, gradient in GRADIENTS.items()}
    _, state = transform.update(others, transform.init(PARAMS), PARAMS)
    again = transform.update(GRADIENTS, state, PARAMS)[0]
    for path in (path for path in PARAMS if path.endswith("kernel")):
        np.testing.assert_allclose(
            again[path], first_directions(name="muon", beta1=0.0)[path], rtol=1e-4, atol=1e-5, err_msg=path
        )


def test_unknown_optimizer_is_refused_by_name():
    with pytest.raises(InputError, match=r"optimizer\.name = 'sgd' must be 'adamw' or 'muon'"):
        OptimizerConfig(name="sgd")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_slow_down_the_parameters_that_they_name_and_no_others(name):
    alike, slower = (
        first_directions(name=name),
        first_directions(name=name, rates=(("dit/.*kernel", 0.1), ("vae/.*", 2.0))),
    )
    for path, factor in zip(PARAMS, (0.1, 1.0, 2.0), strict=True):
        np.testing.assert_allclose(slower[path], factor * alike[path], rtol=1e-6)


def test_a_rate_of_0_is_refused():
    with pytest.raises(InputError, match=r"optimizer\.rates = .* must be factors above 0"):
        OptimizerConfig(rates=(("t5/.*", 0.0),))
