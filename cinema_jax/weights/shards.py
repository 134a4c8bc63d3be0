"""Safetensors files written tensor by tensor, so that never more than one of them is in memory.

The library's own `save_file` wants all tensors of a file at once; what is written here is the same to the byte.
"""

import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from cinema_jax.errors import InputError
from cinema_jax.inputs.files import whole_file
from cinema_jax.weights.tensors import DTYPES, Scratch, WeightError, check_finite

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# So many tensors wait to be written at most: a large one is followed by several small ones.
_AHEAD = 6
# Transformers refuses files that do not say so.
_METADATA = {"format": "pt"}


@runtime_checkable
class Writable(Protocol):
    """What has a shape and a type, and becomes a numpy array when somebody asks for its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self) -> np.ndarray:
        """All of it."""


@runtime_checkable
class Readable(Protocol):
    """What can be read into memory that is used again."""

    def read(self, scratch: Scratch) -> np.ndarray:
        """All of it; valid until the next one is read."""


def plan(stem: str, tensors: Mapping[str, Writable], max_shard_size: int | str) -> dict[str, list[str]]:
    """Which tensors lie in which file: `<stem>.safetensors`, or `<stem>-00001-of-00002.safetensors` and so on.

    Raises:
        InputError: `max_shard_size` is neither a number of bytes nor a text such as "5GB".
    """
    try:
        split = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=nbytes,
            filename_pattern=stem + "{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except (ValueError, IndexError):
        raise InputError(f"max_shard_size is {max_shard_size!r}; accepted is a size such as 5GB or 500MB") from None
    return split.filename_to_tensors


def index(files: Mapping[str, list[str]], tensors: Mapping[str, Writable]) -> dict[str, Any]:
    """What the index of sharded files says."""
    places = {name: file for file, names in files.items() for name in names}
    return {"metadata": {"total_size": sum(map(nbytes, tensors.values()))}, "weight_map": dict(sorted(places.items()))}


def write_tensors(path: Path, tensors: Mapping[str, Writable]) -> None:
    """Write one file, under a temporary name until it is whole.

    Raises:
        WeightError: a number is not finite.
    """
    names = _order(tensors)
    header: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name in names:
        start, end = end, end + nbytes(tensors[name])
        kind = _NAMES[np.dtype(tensors[name].dtype)]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    scratches = [Scratch() for _ in range(_AHEAD + 1)]
    # Tensors are written while the next ones are prepared, each in memory of its own.
    with whole_file(path) as partial, partial.open("wb") as file, ThreadPoolExecutor(1) as writer:
        written = deque([writer.submit(file.write, len(text).to_bytes(8, "little") + text)])
        for i, name in enumerate(names):
            if len(written) > _AHEAD:
                written.popleft().result()
            block = _read(tensors[name], name, scratches[i % len(scratches)])
            written.append(writer.submit(file.write, block.reshape(-1).view(np.uint8).data))
        for future in written:
            future.result()


def read_along(tensors: Mapping[str, Writable]) -> None:
    """What the other processes do while one writes a file of tensors that lie on the devices of all: hand them over.

    Raises:
        WeightError: a number is not finite.
    """
    scratch = Scratch()
    for name in _order(tensors):
        _read(tensors[name], name, scratch)


def _order(tensors: Mapping[str, Writable]) -> list[str]:
    """As the library orders them: the widest types first, so that each lies aligned."""
    kinds = list(DTYPES.values())
    return sorted(tensors, key=lambda name: (kinds.index(np.dtype(tensors[name].dtype)), name))


def _read(tensor: Writable, name: str, scratch: Scratch) -> np.ndarray:
    block = np.ascontiguousarray(tensor.read(scratch) if isinstance(tensor, Readable) else tensor)
    if block.dtype != tensor.dtype or block.size != np.prod(tensor.shape, dtype=int):
        raise WeightError(f"{name} is not what it said it was")
    check_finite(block, name)
    return block


def nbytes(tensor: Writable) -> int:
    """Bytes of a tensor."""
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def describe(tensors: Mapping[str, Writable]) -> str:
    """How many numbers, of which types, how large."""
    count = sum(int(np.prod(x.shape, dtype=np.int64)) for x in tensors.values())
    kinds = " and ".join(sorted({str(np.dtype(x.dtype)) for x in tensors.values()}))
    return f"{count:,} parameters, {kinds}, {sum(map(nbytes, tensors.values())) / 1e9:.2f} GB"
