"""Arrays in Orbax checkpoints, of which only the asked part is read.

Orbax loads whole checkpoints onto devices, in all processes together. To export or place one array after another, each
process reading what it needs, they are opened where they lie: Zarr arrays in an OCDBT store.
"""

import json
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from cinema_jax.errors import InputError
from cinema_jax.tensors import WeightError, check_finite

# Decoded pieces that are kept: layers of one stacked array are asked for one after another, and lie in one piece.
CACHE_BYTES = 2 << 30


class Stored:
    """One array of a checkpoint. Has what `sharding.place` and numpy need of an array; indices count from the front.

    Raises `WeightError` where a number that it read is not finite.
    """

    def __init__(self, name: str, store: tensorstore.TensorStore, dtype: Any = None):
        self._name, self._store = name, store
        self.shape = tuple(store.shape)
        self.dtype = np.dtype(dtype or store.dtype.numpy_dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it, read or not."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def astype(self, dtype: Any) -> "Stored":
        """The same, converted when it is read."""
        return Stored(self._name, self._store, dtype)

    def __getitem__(self, index: slice | int | tuple[slice | int, ...]) -> np.ndarray:
        block = np.asarray(self._store[index].read().result()).astype(self.dtype, copy=False)
        check_finite(block, self._name)
        return block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype)

    def __len__(self) -> int:
        return self.shape[0]


def open_stored(folder: epath.PathLike, prefix: tuple[str, ...] = ()) -> dict[str, Stored]:
    """The arrays of a tree that Orbax saved, {path: array}; with `prefix`, those of one of its branches.

    Raises:
        InputError: the folder is no such checkpoint, or of a layout that is not known here.
    """
    folder = epath.Path(folder)
    try:
        tree = json.loads((folder / "_METADATA").read_text())
        if not (tree["use_ocdbt"] and tree["use_zarr3"]):
            raise InputError(f"{folder} is a checkpoint of an older layout of Orbax; save it with OCDBT and Zarr 3")
        names = [tuple(str(key["key"]) for key in leaf["key_metadata"]) for leaf in tree["tree_metadata"].values()]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} holds no complete checkpoint of Orbax") from None
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    base = str(folder) if "://" in str(folder) else f"file://{folder.resolve()}"
    arrays = {}
    for name in names:
        if name[: len(prefix)] != prefix:
            continue
        store = {"driver": "ocdbt", "base": f"{base}/", "path": ".".join(name) + "/"}
        spec = {"driver": "zarr3", "kvstore": store, "recheck_cached_data": "open"}
        path = "/".join(name[len(prefix) :])
        try:
            arrays[path] = Stored(path, tensorstore.open(spec, open=True, context=context).result())
        except ValueError as error:
            raise WeightError(f"{folder}: {path} cannot be read: {error}") from None
    return arrays
