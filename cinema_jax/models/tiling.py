"""Large frames in overlapping tiles, blended where they overlap (reference: `tiled_encode`, `tiled_decode`)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cinema_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Overlapping tiles in which large frames are coded, one after the other (diffusers: `enable_tiling`)."""

    # Pixels of a tile.
    height: int
    width: int
    # How much of a tile overlaps with the next one.
    overlap_height: float
    overlap_width: float

    def __post_init__(self):
        for name in ("height", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"a tile's {name} is {getattr(self, name)}; it must be positive")
        for name in ("overlap_height", "overlap_width"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")


class Axis(NamedTuple):
    """How tiles lie along height or width."""

    # Of the input: the size of a tile, and the distance between the beginnings of two.
    size: int
    stride: int
    # Of the output: how much a tile blends with the one before it, and how much of it is kept.
    blend: int
    keep: int
    # Whether the last tile is as large as the others and ends where the frame does.
    even: bool = False

    def starts(self, total: int) -> range:
        """Where the tiles of a frame of `total` begin."""
        return range(0, total - (self.size - self.stride) * self.even, self.stride)


def even_axes(latents: int, most: int, overlap: float, compression: int) -> tuple[Axis, Axis]:
    """As `tile_axes`, for the fewest tiles of one size: a program has the network once for each size of tiles.

    Args:
        latents: of the frame.
        most: latents of a tile.
        overlap: the least part of `most` that overlaps with the next tile.
        compression: pixels to a latent.
    """
    shared, count = max(1, int(most * overlap)), 1
    while (size := latents - (count - 1) * (stride := max(1, (latents - shared) // count))) > most:
        count += 1
    blend = size - stride if count > 1 else 0
    decode = Axis(size, size - blend, blend * compression, (size - blend) * compression, even=True)
    return Axis(size * compression, (size - blend) * compression, blend, size - blend, even=True), decode


def tile_axes(name: str, size: int, overlap: float, compression: int) -> tuple[Axis, Axis]:
    """Along `name` (height or width) the tiles of pixels to encode, and those of latents to decode.

    Args:
        name: what the axis is called in errors.
        size: pixels of a tile.
        overlap: the part of a tile that overlaps with the next one, between 0 and 1.
        compression: pixels to a latent.

    Raises:
        InputError: if tiles would not come to lie where they were cut out.
    """
    latents = size // compression
    # Rounded in each unit by itself, as in the original.
    encode = Axis(size, int(size * (1 - overlap)), int(latents * overlap), latents - int(latents * overlap))
    decode = Axis(latents, int(latents * (1 - overlap)), int(size * overlap), size - int(size * overlap))
    whole = latents * compression == size and encode.keep > 0 and decode.stride > 0
    if not whole or encode.stride != encode.keep * compression or decode.keep != decode.stride * compression:
        raise InputError(
            f"tiles of {name} {size} with overlap {overlap:.4g} do not fit together: {name} and "
            f"{name} x overlap must be multiples of {compression}"
        )
    return encode, decode


def axes(
    tiles: Tiles | None, most: Tiles, height: int, width: int, compression: int
) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
    """Along height and along width, the tiles of pixels to encode and those of latents to decode.

    Args:
        tiles: as in `tile_axes`; None: the fewest tiles of one size, as large as `most` at the most.
        height: of the frame, in latents; `width` likewise.
        compression: pixels to a latent.

    Raises:
        InputError: as `tile_axes` does.
    """
    if tiles is None:
        return (
            even_axes(height, most.height // compression, most.overlap_height, compression),
            even_axes(width, most.width // compression, most.overlap_width, compression),
        )
    return (
        tile_axes("height", tiles.height, tiles.overlap_height, compression),
        tile_axes("width", tiles.width, tiles.overlap_width, compression),
    )


def in_tiles(
    code: Callable[[Float[Array, "B F H W C"]], Float[Array, "B F2 H2 W2 C2"]],
    x: Float[Array, "B F H W C"],
    rows: Axis,
    columns: Axis,
) -> Float[Array, "B F2 H2 W2 C2"]:
    """`code` of one tile of `x` after the other, put together."""
    batch, frames, height, width, channels = x.shape
    tops, lefts = rows.starts(height), columns.starts(width)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for top in tops:
        for left in lefts:
            shape = min(rows.size, height - top), min(columns.size, width - left)
            groups.setdefault(shape, []).append((top, left))
    tiles = {}
    for shape, places in groups.items():
        # Tiles of one shape are one loop: they are compiled once, and never computed at the same time.
        def cut_and_code(place, shape=shape):
            zero = jnp.zeros_like(place[0])
            start, size = (zero, zero, *place, zero), (batch, frames, *shape, channels)
            return code(lax.dynamic_slice(x, start, size))

        coded = lax.map(cut_and_code, tuple(jnp.array(axis) for axis in zip(*places, strict=True)))
        tiles |= dict(zip(places, jnp.unstack(coded), strict=True))
    result = []
    for top in tops:
        row = []
        for left in lefts:
            # A neighbour has been blended with its own neighbours by now, as in the original.
            if top:
                tiles[top, left] = _blend(tiles[top - rows.stride, left], tiles[top, left], rows.blend, axis=2)
            if left:
                tiles[top, left] = _blend(tiles[top, left - columns.stride], tiles[top, left], columns.blend, axis=3)
            # The last ones are kept to their end.
            tall, wide = (None if top == tops[-1] else rows.keep), (None if left == lefts[-1] else columns.keep)
            row.append(tiles[top, left][:, :, :tall, :wide])
        result.append(jnp.concatenate(row, axis=3))
    return jnp.concatenate(result, axis=2)


def _blend(
    before: Float[Array, "B F H W C"], tile: Float[Array, "B F H2 W2 C"], extent: int, axis: int
) -> Float[Array, "B F H2 W2 C"]:
    """`tile`, whose beginning fades in over the end of the tile before it."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if not extent:
        return tile
    share = jnp.expand_dims(jnp.arange(extent, dtype=tile.dtype) / extent, range(1, 5 - axis))
    end = lax.slice_in_dim(before, before.shape[axis] - extent, before.shape[axis], axis=axis)
    begin, rest = jnp.split(tile, [extent], axis=axis)
    return jnp.concatenate([end * (1 - share) + begin * share, rest], axis=axis)
