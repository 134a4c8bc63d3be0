"""Where the tokens of the CogVideoX transformer are: its sequence layout and its two kinds of position embedding.

References get what further latent frames would get: time positions F, F+1, ... after the video's 0..F-1, and the
spatial positions of a video of their own size.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cinema_jax.models.patches import join_axes


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """The sequence `[text | video | references | padding]`, in tokens (patches of latents)."""

    text: int
    # Frames, height, width of the video's grid of patches.
    video_grid: tuple[int, int, int]
    # References, height, width of the references' grids, all of one size.
    entity_grid: tuple[int, int, int]
    padding: int

    @property
    def video(self) -> int:
        """Tokens of the video."""
        return math.prod(self.video_grid)

    @property
    def entity(self) -> int:
        """Tokens of one reference."""
        return self.entity_grid[1] * self.entity_grid[2]

    @property
    def entities(self) -> int:
        """Tokens of all references, absent ones included."""
        return self.entity_grid[0] * self.entity

    @property
    def total(self) -> int:
        """Tokens of the whole sequence."""
        return self.text + self.video + self.entities + self.padding

    def is_text(self) -> Bool[Array, "S"]:
        """Which tokens are text."""
        return jnp.arange(self.total) < self.text

    def is_entity(self) -> Bool[Array, "S"]:
        """Which tokens are references, or the padding after them."""
        return jnp.arange(self.total) >= self.text + self.video


def _sincos_axis(positions: np.ndarray, size: int) -> np.ndarray:
    """`size / 2` sines, then the cosines, of each position."""
    angles = np.outer(positions, 10000.0 ** -(np.arange(size // 2) / (size / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_positions(
    grid: tuple[int, int, int], size: int, *, first_frame: int, spatial_scale: float, temporal_scale: float
) -> Float[Array, "S {size}"]:
    """What a sincos network adds to the patch embeddings of a `(frames, height, width)` grid.

    A quarter of the channels tells time, then three eighths width, then height (`get_3d_sincos_pos_embed` of
    diffusers). Positions are divided by the scales; frames count from `first_frame`.
    """
    frames, height, width = grid
    axes = (
        _sincos_axis((first_frame + np.arange(frames)) / temporal_scale, size // 4),
        _sincos_axis(np.arange(height) / spatial_scale, size // 8 * 3),
        _sincos_axis(np.arange(width) / spatial_scale, size // 8 * 3),
    )
    return join_axes(axes, order=(0, 2, 1))


def index_vectors(count: int, size: int) -> Float[np.ndarray, "count size"]:
    """A fixed vector for each reference, all orthogonal and of mean square 1/2: rows of a discrete cosine transform."""
    angles = np.outer(1 + np.arange(count), np.pi * (np.arange(size) + 0.5) / size)
    return np.cos(angles)


def _fit(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The largest centred box of the aspect ratio of `grid` in `base`: its top left and bottom right corners."""
    (height, width), (base_height, base_width) = grid, base
    if height / width > base_height / base_width:
        size = base_height, round(base_height / height * width)
    else:
        size = round(base_width / width * height), base_width
    top, left = round((base_height - size[0]) / 2), round((base_width - size[1]) / 2)
    return (top, left), (top + size[0], left + size[1])


def rotary_positions(
    grid: tuple[int, int, int], size: int, *, first_frame: int, base: tuple[int, int], theta: float
) -> tuple[Float[Array, "S R"], Float[Array, "S R"]]:
    """Cosines and sines of the rotary angles of a `(frames, height, width)` grid, for heads of `size` channels.

    A quarter of the channels turns with time, then three eighths with height, then with width. Whatever its size, a
    grid spans the largest centred box of its aspect ratio in the `base` grid that the network was trained on, so that
    spatial positions may be fractions (`_prepare_rotary_positional_embeddings` of diffusers' CogVideoX pipeline).
    """
    frames, height, width = grid
    (top, left), (bottom, right) = _fit((height, width), base)

    def angles(positions: np.ndarray, channels: int) -> np.ndarray:
        return np.outer(positions, theta ** -(np.arange(0, channels, 2) / channels))

    axes = (
        angles(first_frame + np.arange(frames), size // 4),
        angles(np.linspace(top, bottom * (height - 1) / height, height), size // 8 * 3),
        angles(np.linspace(left, right * (width - 1) / width, width), size // 8 * 3),
    )
    return tuple(join_axes([f(angle) for angle in axes], order=(0, 1, 2)) for f in (np.cos, np.sin))
