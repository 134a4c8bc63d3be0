"""Rectified flow: the path from data to noise, its times, and its loss (arXiv 2209.03003, arXiv 2403.03206).

Time runs from 0 (data) to 1 (noise). Every random number of a sample comes from that sample's own key, so that it
depends on neither the row, nor the host, nor the microbatch in which the sample happens to sit.
"""

import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cinema_jax.models.numerics import at_least_fp32

# Constants that part the uses of one sample's key: the same keys may go into every function here.
_TIME, _NOISE, _EVALUATION = (zlib.crc32(b"flow." + use) for use in (b"time", b"noise", b"evaluation"))


def example_keys(key: Key[Array, ""], indices: Int[Array, "B"]) -> Key[Array, "B"]:
    """One key per sample: `key` folded with the global example index.

    Raises:
        ValueError: for a generator other than threefry, whose numbers under `vmap` depend on the row.
    """
    if (impl := str(jax.random.key_impl(key))) != "threefry2x32":
        raise ValueError(f"key is of the generator {impl!r}; per-sample randomness needs 'threefry2x32'")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def _fold(keys: Key[Array, "B"], use: int) -> Key[Array, "B"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, use)


def shift_times(times: Float[Array, "*shape"], shift: float) -> Float[Array, "*shape"]:
    """`s t / (1 + (s - 1) t)`: more noise for higher resolution (arXiv 2403.03206, equation 23).

    A shift of 1 changes nothing; `1 / shift` undoes `shift`; 0 and 1 stay where they are.
    """
    _check_positive("shift", shift)
    return shift * times / (1 + (shift - 1) * times)


def logit_normal_times(
    keys: Key[Array, "B"], *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Float[Array, "B"]:
    """Times whose logit is normal, then shifted (arXiv 2403.03206, section 3.1). In [0, 1]."""
    _check_positive("std", std)
    normal = jax.vmap(jax.random.normal)(_fold(keys, _TIME))
    return shift_times(jax.nn.sigmoid(mean + std * normal), shift)


def shares(keys: Key[Array, "B"], indices: Int[Array, "B"] | None = None, batch_size: int = 1) -> Float[Array, "B"]:
    """Uniform numbers in [0, 1), one per sample.

    Args:
        indices: global example indices, of which `batch_size` in a row are one batch, however it is split over hosts
            and microbatches: each part of [0, 1) of length `1 / batch_size` then gets one sample of every batch. None:
            the samples are independent.
    """
    drawn = jax.vmap(jax.random.uniform)(_fold(keys, _TIME))
    return drawn if indices is None else (indices % batch_size + drawn) / batch_size


def times_at(
    shares: Float[Array, "B"],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    levels: Float[np.ndarray, "levels"] | None = None,
    uniform: bool = False,
) -> Float[Array, "B"]:
    """The times below which a distribution has those shares of all times.

    Args:
        levels: the distribution is uniform over these times, rising, as they are.
        uniform: it is uniform over [0, 1], then shifted; else logit-normal, as that of `logit_normal_times`.
    """
    if levels is not None:
        return jnp.asarray(levels, jnp.float32)[(shares * len(levels)).astype(jnp.int32).clip(0, len(levels) - 1)]
    if uniform:
        return shift_times(shares, shift)
    _check_positive("std", std)
    return shift_times(jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(shares)), shift)


def v_weight(times: Float[Array, "B"]) -> Float[Array, "B"]:
    """A squared error of the velocity times this is that of v at the same signal-to-noise ratio.

    The velocity is `(alpha + sigma) v` plus what z itself says (see `discrete.as_velocity`), and
    `(alpha + sigma)^2 = 1 / (t^2 + (1 - t)^2)`.
    """
    return times**2 + (1 - times) ** 2


def sample_noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal noise of `shape` per sample."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_fold(keys, _NOISE))


def interpolate(
    x: Float[Array, "B *shape"], noise: Float[Array, "B *shape"], times: Float[Array, "B"]
) -> Float[Array, "B *shape"]:
    """The path `z_t = (1 - t) x + t noise`. Raises AssertionError for shapes that would be stretched to fit."""
    chex.assert_equal_shape([x, noise])
    chex.assert_shape(times, x.shape[:1])
    t = times.reshape(-1, *(1,) * (x.ndim - 1))
    return (1 - t) * x + t * noise


def velocity_target(x: Float[Array, "B *shape"], noise: Float[Array, "B *shape"]) -> Float[Array, "B *shape"]:
    """`dz_t / dt = noise - x`, what the network learns."""
    return noise - x


def flow_loss(
    predicted: Float[Array, "B *shape C"],
    x: Float[Array, "B *shape C"],
    noise: Float[Array, "B *shape C"],
    weights: Float[Array, "B *shape"] | None = None,
) -> Float[Array, "B"]:
    """Mean squared error of the predicted velocity, per sample, in fp32.

    Samples are weighted alike at all times: what arXiv 2403.03206 found best is to weight by how often a time is drawn.
    `weights` say how much each place of a sample counts; only their ratios matter.
    """
    # Shapes that are stretched to fit would give a loss that trains nothing.
    chex.assert_equal_shape([predicted, x, noise])
    error = jnp.square(at_least_fp32(predicted) - at_least_fp32(velocity_target(x, noise))).mean(axis=-1)
    axes = tuple(range(1, error.ndim))
    if weights is None:
        return jnp.mean(error, axis=axes)
    return jnp.sum(weights * error, axis=axes) / jnp.sum(weights, axis=axes)


def evaluation_noise(
    indices: Int[Array, "B"], time_index: int | Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "B ..."]:
    """The fixed noise of a held-out loss: a function of the example and the number of the evaluation time only.

    The same in every run, so that two checkpoints, or two models, are compared on the same draw.
    """
    key = jax.random.fold_in(jax.random.key(_EVALUATION, impl="threefry2x32"), time_index)
    return sample_noise(example_keys(key, indices), shape)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be a positive, finite number")
