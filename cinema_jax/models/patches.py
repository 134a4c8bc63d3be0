"""Patches of latents as tokens: how they are embedded, and tables of where they are."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class PatchEmbed(nnx.Module):
    """Square patches of single frames as tokens: a convolution with a stride of its own size."""

    def __init__(self, patch_size: int, in_channels: int, width: int, *, rngs: nnx.Rngs):
        shape = (patch_size * patch_size * in_channels, width)
        kernel = nnx.initializers.xavier_uniform()(rngs.params(), shape)
        self.kernel = nnx.Param(kernel.reshape(patch_size, patch_size, in_channels, width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B F H W C"]) -> Float[Array, "B S D"]:
        """Tokens in the order frames, rows, columns."""
        p, _, channels, width = self.kernel.shape
        b, f, h, w, _ = x.shape
        x = x.reshape(b, f, h // p, p, w // p, p, channels).transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(b, -1, p * p * channels) @ self.kernel[...].reshape(-1, width) + self.bias[...]


def join_axes(tables: Sequence[np.ndarray], order: tuple[int, int, int]) -> Float[Array, "S D"]:
    """Tables `(positions, channels)` of time, height and width as one of their grid: channels by axis, in this `order`.

    Joined by XLA, because the table of a whole video would be a constant of a hundred megabytes in the program.
    """
    grid = tuple(map(len, tables))
    parts = []
    for axis in order:
        table = np.expand_dims(tables[axis], [i for i in range(3) if i != axis])
        parts.append(jnp.broadcast_to(table, (*grid, table.shape[-1])))
    return jnp.concatenate(parts, axis=-1).reshape(math.prod(grid), -1)
