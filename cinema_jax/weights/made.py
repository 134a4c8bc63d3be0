"""Arrays that are computed, layer by layer, when somebody asks for a part of them."""

from typing import Any

import numpy as np

Index = int | slice | tuple[int | slice, ...]


class Made:
    """A shape, a type, and a part for an index.

    Of stacked layers one at a time is read and computed; what says how is `_part`.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it, made or not."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype)

    def __getitem__(self, index: Index) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        full = (*index, *(slice(None),) * (self.ndim - len(index)))
        layers, rest = full[: self._layered], full[self._layered :]
        if not any(isinstance(layer, slice) for layer in layers):
            return self._part(layers, rest)
        # One layer at a time is read and computed in fp32.
        numbers, out = range(*layers[0].indices(self.shape[0])), None
        for i, number in enumerate(numbers):
            block = self._part((number,), rest)
            out = np.empty((len(numbers), *block.shape), self.dtype) if out is None else out
            out[i] = block
        return out

    # Leading axes: one of stacked layers, or none.
    _layered = 0

    def _part(self, layer: tuple[int, ...], rest: tuple[int | slice, ...]) -> np.ndarray:
        raise NotImplementedError
