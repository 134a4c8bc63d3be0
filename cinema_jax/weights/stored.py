"""Arrays in Orbax checkpoints, of which only the asked part is read.

Orbax loads whole checkpoints onto devices, in all processes together. To export or place one array after another, each
process reading what it needs, they are opened where they lie: Zarr arrays in an OCDBT store.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs.files import read_json
from cinema_jax.inputs.typed import checked, section
from cinema_jax.weights.tensors import WeightError, check_finite

# Decoded pieces that are kept: layers of one stacked array are asked for one after another, and lie in one piece.
CACHE_BYTES = 2 << 30
# Of an array that is read from end to end, what is held at a time.
_PIECE_BYTES = 256 << 20


class Stored:
    """One array of a checkpoint. Has what `sharding.place` and numpy need of an array; indices count from the front.

    Raises `WeightError` where what it read is damaged, or a number in it not finite.
    """

    def __init__(self, name: str, store: tensorstore.TensorStore, where: str, dtype: Any = None):
        self._name, self._store, self._where = name, store, where
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
        return Stored(self._name, self._store, self._where, dtype)

    def __getitem__(self, index: slice | int | tuple[slice | int, ...]) -> np.ndarray:
        with fault_of(f"{self._where}: {self._name} is damaged", WeightError):
            block = np.asarray(self._store[index].read().result()).astype(self.dtype, copy=False)
        check_finite(block, self._name)
        return block

    def pieces(self) -> Iterator[np.ndarray]:
        """All of it as it lies there, in C order, a few rows of the first axis at a time. Raises `WeightError`."""
        rows = max(1, _PIECE_BYTES // max(1, self.nbytes // max(1, len(self)))) if self.shape else 1
        for start in range(0, len(self), rows) if self.shape else (None,):
            index = () if start is None else slice(start, min(start + rows, len(self)))
            with fault_of(f"{self._where}: {self._name} is damaged", WeightError):
                yield np.asarray(self._store[index].read().result())

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
    names = tree_names(folder)
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    base = str(folder) if "://" in str(folder) else f"file://{folder.resolve()}"
    arrays = {}
    for name in names:
        if name[: len(prefix)] != prefix:
            continue
        store = {"driver": "ocdbt", "base": f"{base}/", "path": ".".join(name) + "/"}
        spec = {"driver": "zarr3", "kvstore": store, "recheck_cached_data": "open"}
        path = "/".join(name[len(prefix) :])
        with fault_of(f"{folder}: {path} cannot be read", WeightError):
            arrays[path] = Stored(path, tensorstore.open(spec, open=True, context=context).result(), str(folder))
    return arrays


def tree_names(folder: epath.PathLike) -> list[tuple[str, ...]]:
    """What the arrays of a tree that Orbax saved are called, each by the names of its branches.

    Raises:
        InputError: the folder is no such checkpoint, or of a layout that is not known here.
    """
    file = epath.Path(folder) / "_METADATA"
    try:
        tree = checked(read_json(file), dict[str, Any], "")
        keys = checked(tree.get("tree_metadata"), dict[str, dict[str, Any]], "tree_metadata")
        # Where a tree has nothing at a place, Orbax says so too.
        leaves = [leaf for leaf in keys.values() if not section(leaf, "value_metadata").get("skip_deserialize")]
        paths = [checked(leaf.get("key_metadata"), list[dict[str, Any]], "key_metadata") for leaf in leaves]
    except InputError as error:
        raise InputError(f"{folder} holds no complete checkpoint of Orbax ({error})") from None
    if not (tree.get("use_ocdbt") and tree.get("use_zarr3")):
        raise InputError(f"{folder} is a checkpoint of an older layout of Orbax; save it with OCDBT and Zarr 3")
    return [tuple(str(key.get("key")) for key in path) for path in paths]
