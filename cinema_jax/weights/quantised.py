"""Kernels as codes of one byte and a scale for each output channel: `kernel = codes * scale`.

The scale is the largest magnitude of a channel over the largest code, in fp32, so that no number is moved by more than
half a step. Everything is read and computed layer by layer, and of the codes the asked part alone.

Qwix and AQT do not fit: Qwix 0.1.8 exchanges the weights of the modules that it sees called, and so leaves the kernels
of scanned layers as they are (tried), and takes arrays that are there, not slices of files; AQT 0.9 is for Linen.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32

from cinema_jax.errors import InputError
from cinema_jax.weights.made import Made
from cinema_jax.weights.rules import COPY, LINEAR, Array, Rule

Kind = Literal["int8", "fp8"]
KINDS: tuple[Kind, ...] = ("int8", "fp8")
# What its codes are, and the largest of them.
CODES: Mapping[Kind, tuple[np.dtype, float]] = {
    "int8": (np.dtype(np.int8), 127.0),
    "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}
# Behind the name of a kernel, in files and in our paths, that of its scales.
SCALE = "_scale"


def kind_of(dtype: Any) -> Kind | None:
    """What codes of a type are; None: numbers of that type are no codes."""
    return next((kind for kind, (codes, _) in CODES.items() if codes == dtype), None)


def scales_of(kernel: Float[np.ndarray, "... inputs outputs"], kind: Kind) -> Float32[np.ndarray, "... outputs"]:
    """The scale of each output channel."""
    largest = np.abs(kernel.astype(np.float32, copy=False)).max(axis=-2)
    # A channel of zeros has one, too: it is divided by.
    return np.maximum(largest / np.float32(CODES[kind][1]), np.finfo(np.float32).tiny)


def codes_of(
    kernel: Float[np.ndarray, "... inputs outputs"], scales: Float32[np.ndarray, "... outputs"], kind: Kind
) -> np.ndarray:
    """The nearest codes, of the kernel's shape."""
    dtype, largest = CODES[kind]
    steps = np.clip(kernel.astype(np.float32, copy=False) / scales[..., None, :], -largest, largest)
    return (np.rint(steps, out=steps) if dtype.kind == "i" else steps).astype(dtype)


def scales_like(kernel: Any) -> np.ndarray:
    """An array of the shape that a kernel's scales have; it takes no memory."""
    return np.broadcast_to(np.float32(0), (*kernel.shape[:-2], kernel.shape[-1]))


class Scales(Made):
    """The scales of a kernel, [(layer) outputs]; each layer of it is read once, whole."""

    def __init__(self, kernel: Array, kind: Kind):
        super().__init__((*kernel.shape[:-2], kernel.shape[-1]), np.float32)
        self._kernel, self._kind, self._layered = kernel, kind, len(kernel.shape) - 2
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self._lock = threading.Lock()

    def of_layer(self, layer: tuple[int, ...]) -> Float32[np.ndarray, "outputs"]:
        """Those of one layer."""
        with self._lock:
            if layer not in self._known:
                self._known[layer] = scales_of(np.asarray(self._kernel[layer]), self._kind)
            return self._known[layer]

    def _part(self, layer, rest):
        return self.of_layer(layer)[rest]


class Codes(Made):
    """The codes of a kernel, [(layer) inputs outputs]."""

    def __init__(self, kernel: Array, scales: Scales, kind: Kind):
        super().__init__(kernel.shape, CODES[kind][0])
        self._kernel, self._scales, self._kind, self._layered = kernel, scales, kind, len(kernel.shape) - 2

    def _part(self, layer, rest):
        block = np.asarray(self._kernel[(*layer, *rest)])
        return codes_of(block, self._scales.of_layer(layer)[rest[-1]], self._kind)


class Dequantised(Made):
    """A kernel that lies in files as codes and scales, for whoever wants its numbers."""

    def __init__(self, codes: Array, scales: Array, dtype: Any = np.float32):
        super().__init__(codes.shape, dtype)
        self.codes, self.scales, self._layered = codes, scales, len(codes.shape) - 2

    @property
    def kind(self) -> Kind | None:
        """What the codes are."""
        return kind_of(self.codes.dtype)

    def astype(self, dtype: Any) -> "Dequantised":
        """The same, converted when it is read."""
        return Dequantised(self.codes, self.scales, dtype)

    def _part(self, layer, rest):
        scales = np.asarray(self.scales[layer])[rest[-1]]
        return (np.asarray(self.codes[(*layer, *rest)]).astype(np.float32) * scales).astype(self.dtype)


def quantised(params: Mapping[str, Array], kinds: Mapping[str, Kind]) -> dict[str, Array]:
    """Parameters with codes and scales in the place of some kernels, none of them read yet.

    Args:
        params: by their paths.
        kinds: of those kernels, by their paths. One that lies as such codes in its files keeps these.
    """
    found: dict[str, Array] = {}
    for path, x in params.items():
        if path not in kinds:
            found[path] = x
        elif isinstance(x, Dequantised) and x.kind == kinds[path]:
            found |= {path: x.codes, path + SCALE: x.scales}
        else:
            scales = Scales(x, kinds[path])
            found |= {path: Codes(x, scales, kinds[path]), path + SCALE: scales}
    return found


def joined(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Parameters that were read with `scale_rules`: each kernel that has scales beside it as one array of numbers."""
    return {
        path: Dequantised(x, arrays[path + SCALE]) if path + SCALE in arrays else x
        for path, x in arrays.items()
        if not (path.endswith(SCALE) and path.removesuffix(SCALE) in arrays)
    }


def scale_rules(table: Iterable[Rule]) -> tuple[Rule, ...]:
    """A table's rules for the scales of its kernels: `x.weight` has them as `x.weight_scale`, [outputs]."""
    return tuple(
        Rule(rule.name + SCALE, rule.path + SCALE, COPY, tuple(name + SCALE for name in rule.aliases))
        for rule in table
        if rule.transform is LINEAR
    )


def scaled_names(tensors: Mapping[str, Any]) -> set[str]:
    """The published names of kernels that are codes with a scale for each output channel beside them."""
    return {
        name
        for name, x in tensors.items()
        if kind_of(x.dtype) and name + SCALE in tensors and tensors[name + SCALE].shape == x.shape[:1]
    }


def check_kind(kind: Any, name: str = "weights") -> None:
    """Raises `InputError` where somebody asks for codes of another kind; None asks for none."""
    if kind not in (*KINDS, None):
        raise InputError(f"{name} is {kind!r}; accepted: {', '.join(KINDS)}")
