"""Tensors in safetensors files, mapped into memory: bytes are read when, and as far as, somebody asks for them."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import ml_dtypes
import numpy as np
from safetensors import safe_open

from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs.files import read_json
from cinema_jax.inputs.typed import checked


class WeightError(InputError):
    """Published tensors and a model that do not fit each other."""


INDEX = "*.safetensors.index.json"
# The file format's names of what published weights consist of, in the order in which it lays them out.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I8": np.dtype(np.int8),
}
# Bytes of which XLA wants the addresses of arrays to be multiples.
_ALIGNED = 64
# Integers of the same size, which OpenCV can move.
_SAME_SIZE = {1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.float64}
# Each type's bits as integers, and the least of them without a sign that is not finite: those of its exponent.
_EXPONENTS = {
    np.dtype(np.float64): (np.uint64, 0x7FF0 << 48),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    # It has no infinity, and of these bits one pattern alone is no number.
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 0x7F),
}
# What a folder may hold instead, all of which run code when they are opened.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Tensor:
    """Published tensors as one array of ours, of which only the asked part is read and converted.

    Has what `jax.make_array_from_callback` and numpy need of an array. Raises `WeightError` where a number that it read
    is not finite.
    """

    def __init__(self, views: Mapping[str, np.ndarray], *, stacked: bool, dtype: Any = None):
        """`views`: name to array in our layout, all of one shape; with `stacked` they are the rows of the result."""
        self._views, self._stacked = dict(views), stacked
        first = next(iter(self._views.values()))
        self.dtype = np.dtype(dtype or first.dtype)
        self.shape = (len(self._views), *first.shape) if stacked else first.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it, read or not."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def astype(self, dtype: Any) -> "Tensor":
        """The same, converted when it is read."""
        return Tensor(self._views, stacked=self._stacked, dtype=dtype)

    def __getitem__(self, index: slice | int | tuple[slice | int, ...]) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if not self._stacked:
            ((name, view),) = self._views.items()
            return self._read(name, view, index)
        names = list(self._views)[index[0]] if index else list(self._views)
        if isinstance(names, str):
            return self._read(names, self._views[names], index[1:])
        shape = self._views[names[0]][index[1:]].shape if names else self.shape[1:]
        out = _empty((len(names), *shape), self.dtype)
        for i, name in enumerate(names):
            self._read(name, self._views[name], index[1:], out[i])
        return out

    def _read(self, name: str, view: np.ndarray, index: tuple, out: np.ndarray | None = None) -> np.ndarray:
        block = contiguous(view[index], self.dtype, out)
        check_finite(block, name)
        return block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype)

    def __len__(self) -> int:
        return self.shape[0]


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file, or of a folder: by its index if it has one, or else of all its files.

    Nothing but the files' headers is read: the arrays are views of the mapped files.

    Raises:
        WeightError: the folder has no such file (one with pickles alone is never opened), a file is damaged, a tensor
            is in two files or not where the index says, or the index names a file outside the folder.
    """
    files, index = _files(path)
    tensors, found = {}, {}
    for file in files:
        for name, view in _mapped(file).items():
            if name in found:
                raise WeightError(f"{name} is both in {found[name]} and in {file}")
            tensors[name], found[name] = view, file
    if index:
        file, places = index
        wrong = [name for name in places if found.get(name) != path / places[name]]
        if wrong:
            raise WeightError(f"{file} says that {wrong[0]} is in {places[wrong[0]]}, where it is not")
        if extra := sorted(set(found) - set(places)):
            raise WeightError(f"{found[extra[0]]} holds {extra[0]}, which {file} does not name")
    return tensors


def _files(path: Path) -> tuple[list[Path], tuple[Path, dict[str, str]] | None]:
    """The files to read and, where there is one, the index and what it says: tensor to file name."""
    if not path.is_dir():
        if not path.is_file():
            raise WeightError(f"{path}: no .safetensors file here")
        return [path], None
    indices = sorted(path.glob(INDEX))
    if len(indices) > 1:
        raise WeightError(f"{path} has {len(indices)} indices: {', '.join(file.name for file in indices)}; keep one")
    if indices:
        places = _places(indices[0])
        files = [path / name for name in sorted(set(places.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise WeightError(f"{indices[0]} names {', '.join(missing)}, which the folder lacks: fetch the rest of it")
        return files, (indices[0], places)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
            raise WeightError(
                f"{path} holds {pickles[0]} and no .safetensors file; pickles can run any code and are never opened: "
                "take the model's safetensors version, or convert it with safetensors' own tools"
            )
        raise WeightError(f"{path}: no .safetensors file here")
    return files, None


def _places(file: Path) -> dict[str, str]:
    try:
        places = checked(read_json(file).get("weight_map"), dict[str, str], "weight_map")
    except InputError as error:
        needs = "it needs a weight_map of tensors to file names"
        raise WeightError(f"{file} is no index of safetensors files: {needs} ({error})") from None
    for name in places.values():
        if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise WeightError(f"{file} names {name!r}; accepted are files in its own folder")
    return places


def _mapped(file: Path) -> dict[str, np.ndarray]:
    # Checks the header: sizes, offsets, overlaps, the file's length.
    with fault_of(f"{file}: damaged or no safetensors file", WeightError):
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    data = (
        np.memmap(file, np.uint8, "r", offset=8 + length) if file.stat().st_size > 8 + length else np.empty(0, np.uint8)
    )
    tensors = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        kind, shape = header[name]["dtype"], header[name]["shape"]
        if kind not in DTYPES:
            raise WeightError(f"{file}: {name} is of type {kind}; accepted: {', '.join(DTYPES)}")
        tensors[name] = data[start:end].view(DTYPES[kind]).reshape(shape)
    return tensors


def contiguous(view: np.ndarray, dtype: Any = None, out: np.ndarray | None = None) -> np.ndarray:
    """A copy in C order, in `out` if given. Transposed matrices go through OpenCV, six times as fast as numpy."""
    # What overflows becomes infinite, which is not finite and so is not accepted.
    with np.errstate(over="ignore"):
        return _contiguous(view, dtype, out)


def _contiguous(view: np.ndarray, dtype: Any, out: np.ndarray | None) -> np.ndarray:
    size = view.dtype.itemsize
    if view.ndim != 2 or view.strides[0] != size or view.strides[1] < size or size not in _SAME_SIZE:
        if out is None:
            return np.array(view, dtype=dtype, order="C")
        out[...] = view
        return out
    if out is None:
        out = _empty(view.shape, dtype or view.dtype)
    same = out if out.dtype == view.dtype and out.flags.c_contiguous else np.empty(view.shape, view.dtype)
    cv2.transpose(view.T.view(_SAME_SIZE[size]), dst=same.view(_SAME_SIZE[size]))
    if same is not out:
        out[...] = same
    return out


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that begins where jax wants it, so that a device of the host takes it as it is instead of a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


class Scratch:
    """Memory that is used again and again: fresh pages cost more than what is copied into them."""

    def __init__(self):
        self._memory: dict[str, np.ndarray] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array with anything in it, that is valid until the same `use` is taken again."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if use not in self._memory or self._memory[use].size < size:
            self._memory[use] = _empty((size,), np.uint8)
        return self._memory[use][:size].view(dtype).reshape(shape)


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise `WeightError` where a number is infinite or none: all bits of its exponent are set."""
    if array.dtype not in _EXPONENTS:
        return
    kind, exponent = _EXPONENTS[array.dtype]
    bits = (array if array.flags.c_contiguous else np.ascontiguousarray(array)).reshape(-1).view(kind)
    unsigned = np.array(np.iinfo(kind).max >> 1, kind)
    # In pieces that stay in the cache.
    for start in range(0, bits.size, 1 << 16):
        if (bits[start : start + (1 << 16)] & unsigned).max() >= exponent:
            raise WeightError(f"{name} holds numbers that are not finite, as {array.dtype}")
