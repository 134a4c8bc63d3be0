"""What the causal video VAEs have in common: the clips they hold, and running over one chunk by chunk."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cinema_jax.errors import InputError


def in_chunks(
    network: Callable[[Array, Any], Array],
    x: Float[Array, "B F H W C"],
    *,
    stream: Callable[..., Any],
    first: int,
    size: int,
    coded: int,
) -> Float[Array, "B F2 H2 W2 C2"]:
    """The network's output for the `first` frames of `x`, then for `size` frames at a time, which become `coded` ones.

    Args:
        network: called with frames and a stream.
        stream: `stream()` for the beginning of a clip; `stream(kept)` with what a chunk's stream kept for the next.

    The later chunks are one scan: neither memory nor compilation grows with their number.
    """
    begun = stream()
    head = network(x[:, :first], begun)
    chunks = (x.shape[1] - first) // size
    if not chunks:
        return head
    batch, done, *rest = head.shape
    # Every chunk is read from and written to its place, as scanned inputs and outputs would be held once more.
    y = jnp.zeros((batch, done + chunks * coded, *rest), head.dtype).at[:, :done].set(head)

    def code(carry, i):
        past, y = carry
        following = stream(past)
        chunk = network(lax.dynamic_slice_in_dim(x, first + i * size, size, axis=1), following)
        return (following.kept, lax.dynamic_update_slice_in_dim(y, chunk, done + i * coded, axis=1)), None

    return lax.scan(code, (begun.kept, y), jnp.arange(chunks))[0][1]


def latent_shape(config: Any, frames: int, height: int, width: int, why: str = "") -> tuple[int, int, int, int]:
    """The latents' (F, H, W, C) for a clip of this size.

    Args:
        config: of a VAE, with `frame_unit`, `temporal_compression`, `spatial_compression` and `z_dim`.
        why: stands behind what the frames must be, where they are not.

    Raises:
        InputError: unless frames are a multiple of the unit and 1 more, and height and width multiples of a latent's.
    """
    unit, space = config.frame_unit, config.spatial_compression
    if frames < 1 or (frames - 1) % unit:
        nearest = max(0, round((frames - 1) / unit)) * unit + 1
        raise InputError(f"frames={frames} must be {unit}k + 1{why}; the nearest is {nearest}")
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % space:
            nearest = max(1, round(size / space)) * space
            raise InputError(f"{name}={size} must be a multiple of {space}; the nearest is {nearest}")
    return (frames - 1) // config.temporal_compression + 1, height // space, width // space, config.z_dim
