"""Two sums over an array's bits, the same wherever it lies: on any devices, in any file, in pieces."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from cinema_jax.devices import distributed

# The sum of an array's words, and that of each word times its place (counted in odd numbers), modulo 2^32. One flipped
# bit changes the first, words that changed places the second.
Sums = tuple[int, int]
# Words that are summed at a time on the host.
_PIECE = 1 << 20
# By the bytes of a number; those of 8 are two words, the lower one first.
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def of_arrays(arrays: Iterable[jax.Array]) -> list[Sums]:
    """The sums of arrays where they lie, however they are sharded. All processes must call this."""
    arrays = list(arrays)
    if all(x.is_fully_addressable and _on_host(x) for x in arrays):
        # Without seconds of the compiler's.
        return [of_pieces([np.asarray(x)]) for x in arrays]
    return [(int(first), int(second)) for first, second in distributed.fetch(_on_devices(arrays))]


def _on_host(x: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in x.sharding.device_set)


@jax.jit
def _on_devices(arrays: list[Array]) -> UInt32[Array, "arrays 2"]:
    return jnp.stack([_sums(x) for x in arrays])


def _sums(x: Array) -> UInt32[Array, "2"]:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    # Its place in C order, of each word; no array of them is made.
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    weighted = words * (2 * place + 1)
    return jnp.stack([jnp.sum(words, dtype=jnp.uint32), jnp.sum(weighted, dtype=jnp.uint32)])


def of_pieces(pieces: Iterable[np.ndarray]) -> Sums:
    """The sums of an array that comes in consecutive pieces, in C order."""
    first, second, start = 0, 0, 0
    for words in _words(pieces):
        total = int(words.sum(dtype=np.uint32))
        within = int((words * _PLACES[: words.size]).sum(dtype=np.uint32))
        first, second = first + total, second + within + 2 * start * total
        start += words.size
    return first % 2**32, second % 2**32


# Overflow is meant.
_PLACES = 2 * np.arange(_PIECE, dtype=np.uint32) + 1


def _words(pieces: Iterable[np.ndarray]) -> Iterator[Any]:
    for piece in pieces:
        flat = np.ascontiguousarray(piece).reshape(-1).view(_WORDS[piece.dtype.itemsize])
        for start in range(0, flat.size, _PIECE):
            yield flat[start : start + _PIECE].astype(np.uint32)
