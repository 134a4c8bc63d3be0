"""The basis and scale of a trained VAE's latents."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from cinema_jax.cinema import Cinema, to_float
from cinema_jax.data.critters.source import Critters
from cinema_jax.experiment import parts
from cinema_jax.training import latent_scale


@pytest.fixture(scope="module")
def batches():
    source = Critters("validation", frames=5, height=32, width=32)
    return [{"video": jnp.stack([source.video(4 * batch + row) for row in range(4)])} for batch in range(2)]


@pytest.fixture(scope="module")
def vae(batches):
    """The smallest VAE with random weights, whose channels are very unlike each other; as config and parameters."""
    config = tiny_config().vae_model
    params = {path: jnp.asarray(x) for path, x in parts.initialise("vae", config, 0).items()}
    factors = jnp.array([1.0, 5.0, 0.2, 2.0])
    params["vae/quant_conv/kernel"] *= jnp.concatenate([factors, factors])
    return config, params


def coded(config, params, batches):
    """Latents of all clips, and what becomes of the first of them again."""

    @jax.jit
    def code(params, video):
        model = Cinema(tiny_config(), {"vae": config}).part(params, "vae")
        latents = model.encode(to_float(video))
        return latents, model.decode(latents)

    latents, decoded = zip(*(code(params, batch["video"]) for batch in batches), strict=True)
    return np.concatenate(latents), np.asarray(decoded[0])


@pytest.fixture(scope="module")
def scaled(vae, batches):
    """By exponent: the VAE's config and parameters in its new basis, latents and what is decoded; None: as it was."""

    @functools.cache
    def by(exponent):
        found, config = vae, tiny_config()
        if exponent is not None:
            stage = dataclasses.replace(config.vae, importance=exponent)
            cinema = Cinema(dataclasses.replace(config, vae=stage), {"vae": vae[0]})
            found = latent_scale.scaled(cinema, vae[1], batches)
        return *found, *coded(*found, batches)

    return by


def test_without_importance_all_channels_have_the_same_variance(vae, scaled):
    _, params, latents, _ = scaled(0.0)
    assert params is vae[1]
    found = latents.reshape(-1, 4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-4)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_clips_come_back_as_before(scaled, exponent):
    np.testing.assert_allclose(scaled(exponent)[-1], scaled(None)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_channels_are_uncorrelated_and_as_large_as_their_importance(scaled, exponent):
    config, _, latents, _ = scaled(exponent)
    found = np.cov(latents.reshape(-1, 4).T, bias=True)
    np.testing.assert_allclose(np.diag(found).mean(), 1, rtol=1e-3)
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-3)
    raw = np.diag(found) * np.square(config.latents_std)
    left = raw**exponent
    np.testing.assert_allclose(np.diag(found), left / left.mean(), rtol=1e-2)


def test_in_the_new_basis_every_direction_changes_the_picture_alike(scaled, batches):
    config, params, *_ = scaled(1.0)
    form = latent_scale._importance(Cinema(tiny_config(), {"vae": config}), params, batches)
    np.testing.assert_allclose(form, np.eye(4), atol=1e-2)


def test_importance_is_the_jacobian_of_the_decoder(vae, batches):
    """Pictures of one latent position, where no other position mixes in."""
    config, params = vae
    cinema = Cinema(tiny_config(), {"vae": config})
    pictures = batches[0]["video"][:, :1, 8:16, 8:16]

    @jax.jit
    def jacobian_of(params, picture):
        model = cinema.part(params, "vae")
        return jax.jacrev(model.decode_raw)(model.encode_moments(to_float(picture[None]))[0])

    jacobians = [np.asarray(jacobian_of(params, picture)).reshape(-1, 4) for picture in pictures]
    expected = [jacobian.T @ jacobian for jacobian in jacobians]
    form = latent_scale._importance(cinema, params, [{"video": pictures}])
    wanted = np.mean(expected, axis=0)
    np.testing.assert_allclose(form, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
