"""How a trained VAE's latents are scaled for the flow that will be learned on them.

Noise hides first what is small. With the same variance in every channel a flow spends as much on those that hardly show
in the picture as on those that make it; scaled by what they change of the picture, it goes from the coarse to the fine.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinema_jax.cinema import Cinema, Params, to_float
from cinema_jax.devices import distributed
from cinema_jax.models.numerics import at_least_fp32

# Relative to the largest: directions that change the picture less are taken to change it so much.
_LEAST = 1e-4


def scaled(cinema: Cinema, params: Params, batches: Sequence[Mapping[str, Any]]) -> tuple[Any, Params]:
    """The VAE's config with its latents' statistics over held-out clips, and all parameters, as the config wants it."""
    if exponent := cinema.config.vae.importance:
        return by_importance(cinema, params, batches, exponent)
    return alike(cinema, params, batches), params


def alike(cinema: Cinema, params: Params, batches: Sequence[Mapping[str, Any]]) -> Any:
    """The VAE's config with the mean and standard deviation of each latent channel: all have the same variance."""
    mean, covariance = _moments(cinema, params, batches)
    return _described(cinema, mean, np.sqrt(np.maximum(np.diag(covariance), 1e-12)))


def by_importance(
    cinema: Cinema, params: Params, batches: Sequence[Mapping[str, Any]], exponent: float
) -> tuple[Any, dict[str, Any]]:
    """The same VAE in another basis of its latents; its config with their statistics, and all of `params`.

    Channels become uncorrelated directions of the latents, measured by what they change of the picture: with
    `exponent` 1 a squared error of the normalised latents is in proportion to one of the picture; towards 0 their
    variances approach each other. Encoder and decoder undo it in their pointwise convolutions (`quant_conv` and
    `post_quant_conv`), so that clips come back as before, to rounding. Log variances are rotated like variances,
    but averaged as logarithms.
    """
    mean, covariance = _moments(cinema, params, batches)
    weights, directions = np.linalg.eigh(_importance(cinema, params, batches))
    weights = np.maximum(weights, _LEAST * weights.max())
    root = (directions * np.sqrt(weights)) @ directions.T
    variances, axes = np.linalg.eigh(root @ covariance @ root)
    variances, axes = np.maximum(variances[::-1], _LEAST * variances.max()), axes[:, ::-1]
    forth = axes.T @ root
    shares = forth**2 / (forth**2).sum(axis=1, keepdims=True)
    back = np.linalg.inv(forth)

    quant, post = "vae/quant_conv", "vae/post_quant_conv"
    kernels = {name: np.asarray(distributed.fetch(params[f"{name}/kernel"]), np.float64) for name in (quant, post)}
    biases = {name: np.asarray(distributed.fetch(params[f"{name}/bias"]), np.float64) for name in (quant, post)}
    (mean_kernel, log_kernel), (mean_bias, log_bias) = (np.split(x[quant], 2, axis=-1) for x in (kernels, biases))
    changed = {
        f"{quant}/kernel": np.concatenate([mean_kernel @ forth.T, log_kernel @ shares.T], axis=-1),
        f"{quant}/bias": np.concatenate([forth @ (mean_bias - mean), shares @ log_bias + np.log((forth**2).sum(1))]),
        f"{post}/kernel": back.T @ kernels[post],
        f"{post}/bias": biases[post] + mean @ kernels[post],
    }
    # What is left of each channel's variance is its power of `exponent`, 1 in the mean over channels.
    left = variances**exponent
    std = np.sqrt(variances / (left / left.mean()))
    return _described(cinema, np.zeros_like(mean), std), dict(params) | {
        path: jax.device_put(x.astype(params[path].dtype), params[path].sharding) for path, x in changed.items()
    }


def _described(cinema: Cinema, mean: np.ndarray, std: np.ndarray) -> Any:
    statistics = {"latents_mean": tuple(map(float, mean)), "latents_std": tuple(map(float, std))}
    return dataclasses.replace(cinema.part_configs["vae"], **statistics)


def _moments(
    cinema: Cinema, params: Params, batches: Sequence[Mapping[str, Any]]
) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "C C"]]:
    """Mean and covariance of the latent channels over all clips and positions."""

    @jax.jit
    def sums(params, video):
        x = cinema.part(params, "vae").encode_moments(to_float(video).astype(cinema.dtype))[0]
        x = at_least_fp32(x).reshape(-1, x.shape[-1])
        return x.mean(0), x.T @ x / len(x)

    found = [tuple(map(distributed.fetch, sums(params, batch["video"]))) for batch in batches]
    mean, square = (np.mean(np.asarray(x, np.float64), axis=0) for x in zip(*found, strict=True))
    return mean, square - np.outer(mean, mean)


def _importance(cinema: Cinema, params: Params, batches: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "C C"]:
    """The squared change of the picture by a small change of the latents, as a quadratic form of its channels.

    That of a change at one position; all positions are changed at once, by independent signs, and the products
    between different ones are nothing in the mean.
    """

    @jax.jit
    def form(params, video, key) -> Float[Array, "C C"]:
        vae = cinema.part(params, "vae")
        latents = vae.encode_moments(to_float(video).astype(cinema.dtype))[0]
        signs = jax.random.rademacher(key, (*latents.shape[:-1], 1), latents.dtype)

        decoded, backward = jax.vjp(vae.decode_raw, latents)
        # Our convolutions know no forward mode; a transposed backward pass is one.
        forward = jax.linear_transpose(lambda error: backward(error)[0], decoded)

        def change(channel: Float[Array, "C"]) -> Float[Array, "n"]:
            return forward(signs * channel)[0].ravel()

        changes = jax.lax.map(change, jnp.eye(latents.shape[-1], dtype=latents.dtype))
        changes = at_least_fp32(changes)
        return changes @ changes.T / signs.size

    keys = jax.random.split(jax.random.key(0), len(batches))
    found = [distributed.fetch(form(params, batch["video"], key)) for batch, key in zip(batches, keys, strict=True)]
    return np.mean(np.asarray(found, np.float64), axis=0)
