"""Read and write published checkpoints by declarative tables.

A table is a tuple of `Rule`s, one per kind of tensor. A rule names the published tensor and our parameter by templates:

    Rule("transformer_blocks.{layer}.attn1.to_q.weight", "blocks/to_q/kernel", LINEAR)

`{layer}` stands for a number. Where our side lacks a placeholder that the published side has, that axis is stacked: the
published tensors become rows of one array with a leading `layer` axis. Every tensor and every parameter is used exactly
once; everything that does not fit is reported together.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cinema_jax.devices import distributed
from cinema_jax.weights.made import Made
from cinema_jax.weights.stored import Stored
from cinema_jax.weights.tensors import Scratch, Tensor, WeightError, contiguous

# What holds a parameter: all of them have a shape, a type, and a part for an index.
Array = np.ndarray | jax.Array | Tensor | Stored | Made

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a published array becomes ours, and back. `load` should return a view, so that nothing is read too early."""

    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


COPY = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
CONV2D = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
CONV3D = Transform(lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2))  # OIDHW <-> DHWIO

# (out, in, 1, 1, 1) <-> (in, out)
POINTWISE3D = Transform(lambda x: x[:, :, 0, 0, 0].T, lambda x: x.T[:, :, None, None, None])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor: its published name (aliases accepted when reading), our path, and the transform."""

    name: str
    path: str
    transform: Transform = COPY
    aliases: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether published tensors of several layers become one array of ours."""
        return "{layer}" in self.name and "{layer}" not in self.path


def linear(name: str, path: str, *aliases: str, bias: bool = True) -> tuple[Rule, ...]:
    """The rules of a linear layer `name`, whose parameters are `path/kernel` and `path/bias`."""
    rules = (Rule(f"{name}.weight", f"{path}/kernel", LINEAR, tuple(f"{a}.weight" for a in aliases)),)
    if bias:
        rules += (Rule(f"{name}.bias", f"{path}/bias", COPY, tuple(f"{a}.bias" for a in aliases)),)
    return rules


def conv(name: str, path: str, transform: Transform) -> tuple[Rule, ...]:
    """The rules of a convolution `name` with a bias, whose parameters are `path/kernel` and `path/bias`."""
    return Rule(f"{name}.weight", f"{path}/kernel", transform), Rule(f"{name}.bias", f"{path}/bias", COPY)


def norm(name: str, path: str, *aliases: str, bias: bool = True) -> tuple[Rule, ...]:
    """The rules of a norm `name`, whose parameters are `path/scale` and `path/bias`."""
    rules = (Rule(f"{name}.weight", f"{path}/scale", COPY, tuple(f"{a}.weight" for a in aliases)),)
    if bias:
        rules += (Rule(f"{name}.bias", f"{path}/bias", COPY, tuple(f"{a}.bias" for a in aliases)),)
    return rules


def flatten(state: nnx.State | nnx.Module) -> dict[str, object]:
    """A module's parameters (or a state of them) as `{"blocks/to_q/kernel": array}`."""
    if isinstance(state, nnx.Module):
        state = nnx.state(state, nnx.Param)
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def build(graph: nnx.GraphDef, arrays: Mapping[str, Any]) -> Any:
    """The module of a graph that has these parameters, under the paths that `flatten` gives."""
    leaves = [(tuple(map(_key, path.split("/"))), nnx.Param(x)) for path, x in arrays.items()]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def _key(name: str) -> str | int:
    """Of a list the modules have numbers."""
    return int(name) if name.isdigit() else name


def _pattern(template: str) -> re.Pattern:
    parts, end = [], 0
    for match in _PLACEHOLDER.finditer(template):
        parts += [re.escape(template[end : match.start()]), rf"(?P<{match.group(1)}>\d+)"]
        end = match.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def import_weights(
    tensors: Mapping[str, np.ndarray], table: Sequence[Rule], expected: Mapping[str, object]
) -> dict[str, Tensor]:
    """Published tensors as our parameters, none of them read yet if they are views of files.

    Args:
        tensors: published name to array.
        table: the model's rules.
        expected: our path to anything with a shape: `flatten(model)`, of a real or an abstract model.

    Returns:
        Our path to array, in the published dtype.

    Raises:
        WeightError: naming all missing, unexpected and misshaped tensors at once.
    """
    patterns = [(rule, _pattern(name)) for rule in table for name in (rule.name, *rule.aliases)]
    found: dict[str, dict[int, tuple[str, np.ndarray]]] = {}
    stacked, problems = set(), []
    for name, tensor in tensors.items():
        rule, match = next(((r, m) for r, p in patterns if (m := p.fullmatch(name))), (None, None))
        if rule is None:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
            continue
        path = rule.path.format(**match.groupdict())
        layer = int(match["layer"]) if rule.stacked else 0
        if rule.stacked:
            stacked.add(path)
        if layer in found.setdefault(path, {}):
            problems.append(f"{name} is a second tensor for {path}")
        found[path][layer] = name, rule.transform.load(np.asarray(tensor))
    arrays = {}
    for path, layers in found.items():
        gaps = sorted(set(range(max(layers) + 1)) - set(layers))
        if gaps or len({x.shape for _, x in layers.values()}) > 1:
            problems.append(f"{path}: layers {gaps} are missing" if gaps else f"{path}: layers differ in shape")
            continue
        arrays[path] = Tensor(dict(layers[i] for i in sorted(layers)), stacked=path in stacked)
    problems += [f"missing {path} {list(expected[path].shape)}" for path in sorted(set(expected) - set(found))]
    for path in sorted(arrays):
        if path not in expected:
            problems.append(f"unexpected {path} {list(arrays[path].shape)}")
        elif tuple(arrays[path].shape) != tuple(expected[path].shape):
            problems.append(f"{path} has shape {list(arrays[path].shape)}, the model {list(expected[path].shape)}")
    if problems:
        raise WeightError("the weights do not fit the model:\n  " + "\n  ".join(problems))
    return arrays


class Published:
    """One published tensor, made of a parameter of ours whenever somebody asks for it."""

    def __init__(self, array: Array, layer: int | None, transform: Transform, dtype: Any = None):
        self._array, self._layer, self._transform = array, layer, transform
        self.dtype = np.dtype(dtype or array.dtype)
        shape = array.shape if layer is None else array.shape[1:]
        self.shape = transform.save(np.broadcast_to(np.zeros((), np.int8), shape)).shape

    def astype(self, dtype: Any) -> "Published":
        """The same, converted when it is read."""
        return Published(self._array, self._layer, self._transform, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(Scratch()), dtype)

    def read(self, scratch: Scratch) -> np.ndarray:
        """The tensor, in memory of `scratch`."""
        ours = on_host(self._array, () if self._layer is None else (self._layer,), scratch)
        return contiguous(self._transform.save(ours), out=scratch.take("published", self.shape, self.dtype))


def on_host(array: Array, index: tuple[int, ...], scratch: Scratch) -> np.ndarray:
    """A part of an array, with an index for the first of its axes, without moving the rest.

    Of a `jax.Array` that other processes hold as well, all of them must ask for it together.
    """
    if not isinstance(array, jax.Array):
        return np.asarray(array[index])
    if not array.is_fully_addressable:
        return distributed.fetch_row(array, index)
    out = scratch.take("ours", array.shape[len(index) :], array.dtype)
    for shard in array.addressable_shards:
        # The index inside the shard, if it is there.
        own = tuple(i - (s.start or 0) for i, s in zip(index, shard.index, strict=False))
        if shard.replica_id == 0 and all(0 <= i < n for i, n in zip(own, shard.data.shape, strict=False)):
            out[shard.index[len(index) :]] = np.asarray(shard.data)[own]
    return out


def publish(arrays: Mapping[str, Array], table: Sequence[Rule]) -> dict[str, Published]:
    """Our parameters under their published names and layouts, none of them read yet: inverts `import_weights`.

    Their order is that of our paths, wherever they come from.
    """
    patterns = [(rule, _pattern(rule.path)) for rule in table]
    tensors = {}
    for path, array in sorted(arrays.items()):
        rule, match = next(((r, m) for r, p in patterns if (m := p.fullmatch(path))), (None, None))
        if rule is None:
            raise WeightError(f"no rule exports the parameter {path} {list(array.shape)}")
        for layer in range(array.shape[0]) if rule.stacked else (None,):
            fields = match.groupdict() | ({"layer": layer} if rule.stacked else {})
            tensors[rule.name.format(**fields)] = Published(array, layer, rule.transform)
    return tensors


def export_weights(arrays: Mapping[str, Array], table: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The same as arrays of the host."""
    return {name: np.asarray(tensor) for name, tensor in publish(arrays, table).items()}


def load_into(module: nnx.Module, arrays: Mapping[str, Array]) -> None:
    """Set a module's parameters from `{path: array}`, keeping the module's dtypes; all paths must be present."""
    state = nnx.state(module, nnx.Param)
    flat = nnx.to_flat_state(state)
    leaves = [(path, leaf.replace(jnp.asarray(arrays["/".join(map(str, path))], leaf.dtype))) for path, leaf in flat]
    nnx.update(module, nnx.from_flat_state(leaves))
