"""The mesh, and one table that places every array of a train state.

Modules carry no sharding annotation. A leaf's place follows from its path alone: `RULES` is searched from the top for a
pattern at the end of the path, so that a parameter, its average and its optimizer moments always lie alike.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cinema_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")

# (pattern at the end of a path, mesh axes of the *last* array axes). The first match wins. Leading array axes that a
# rule does not speak of (the `layer` axis of stacked layers, the window of a convolution) are not split.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # One value per channel, or per head and bucket: small, and every device needs all of it.
    (r"\w*bias|scale", ()),
    # Vocabularies: (words, width).
    (r"embedding|token_embedding", ("tensor", "fsdp")),
    # Convolutions of the VAEs, (..., in, out): gathered before use; splitting `in` would sum activations instead.
    (r"(\w*conv\w*|resample)/kernel", (None, "fsdp")),
    # Projections back to the residual stream, (in, out): split by rows, so that one all-reduce follows.
    (r"(to_out|o|o_proj|proj|proj_out|output_projection|down|down_proj|wo|fc2)/kernel", ("tensor", "fsdp")),
    # Every other projection, (in, out): split by columns.
    (r"kernel", ("fsdp", "tensor")),
    # What is left (learned latents, counters, random keys) is small.
    (r".*", ()),
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one array lies, and why not elsewhere.

    Attributes:
        spec: its partition over the mesh.
        bytes_per_device: its share on each device.
        note: which array axes a rule wanted to split but could not, or empty.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes_per_device: int
    note: str


def make_mesh(
    data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes `data, fsdp, context, tensor` over `devices` (default: all).

    One size may be -1: it takes the devices that the others leave.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, context, tensor), strict=True))
    count = len(jax.devices() if devices is None else devices)
    asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise InputError(f"mesh {asked}: every axis must be at least 1, and at most one may be -1 (fill)")
    known = math.prod(size for size in sizes.values() if size != -1)
    shape = tuple(count // known if size == -1 else size for size in sizes.values())
    if math.prod(shape) != count:
        raise InputError(
            f"mesh {asked} does not fit {count} devices: the product must be {count}, or one axis -1 (fill)"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as `opt_state/0/mu/dit/blocks/to_q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rule(path: str) -> tuple[str | None, ...]:
    """The mesh axes that the table gives to the last axes of the array at `path`."""
    return next(axes for pattern, axes in RULES if re.search(rf"(^|/)({pattern})$", path))


def placements(tree: Any, mesh: Mesh | AbstractMesh) -> Iterator[Placement]:
    """The place of every leaf of `tree` (arrays, abstract arrays or tracers) on `mesh`.

    An array axis that its mesh axis does not divide stays whole, with a note.
    """
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path, shape, dtype = path_name(keys), tuple(leaf.shape), np.dtype(leaf.dtype)
        # A rule longer than the shape belongs to another array: factored moments share the path of their parameter.
        axes = rule(path)
        axes = (None,) * (len(shape) - len(axes)) + axes if len(axes) <= len(shape) else (None,) * len(shape)
        kept, notes = [], []
        for size, axis in zip(shape, axes, strict=True):
            fits = axis is None or size % mesh.shape[axis] == 0
            kept.append(axis if fits else None)
            if not fits:
                notes.append(f"{axis} {mesh.shape[axis]} does not divide {size}: kept whole")
        split = math.prod(mesh.shape[axis] for axis in kept if axis)
        spec = PartitionSpec(*kept) if any(kept) else PartitionSpec()
        size = math.prod(shape) * dtype.itemsize // split
        yield Placement(path, shape, str(dtype), spec, size, "; ".join(notes))


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """`tree` with a `NamedSharding` for every leaf: the whole train state is placed by this."""
    leaves = [NamedSharding(mesh, placement.spec) for placement in placements(tree, mesh)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def abstract(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """`tree` as `jax.ShapeDtypeStruct`s that carry their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """`tree` on the mesh, by the table. Arrays of the host must be the same in every process.

    Of anything but a `jax.Array` each device's slice is read alone, and is on the device before the next one is read.
    """

    def put(leaf, sharding):
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        slices, blocks = sharding.addressable_devices_indices_map(tuple(leaf.shape)), {}
        for device, index in slices.items():
            key = tuple((s.start, s.stop) for s in index)
            # The same slice on several devices is read once.
            first = blocks.get(key, [None])[0]
            blocks.setdefault(key, []).append(jax.device_put(leaf[index] if first is None else first, device))
            jax.block_until_ready(blocks[key])
        placed = [block for copies in blocks.values() for block in copies]
        return jax.make_array_from_single_device_arrays(tuple(leaf.shape), sharding, placed)

    return jax.tree.map(put, tree, shardings(tree, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`; devices that differ in `context` or `tensor` hold the same rows."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def local_rows(mesh: Mesh, size: int) -> slice:
    """The contiguous rows of a global batch of `size` that this process's devices hold, and so the ones it must load.

    Raises:
        InputError: the batch does not split over the mesh.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % parts:
        raise InputError(f"a batch of {size} does not split over data x fsdp = {parts} devices: take a multiple of it")
    slices = [
        index[0].indices(size) for index in batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    ]
    return slice(min(start for start, _, _ in slices), max(stop for _, stop, _ in slices))


def global_batch(rows: Mapping[str, np.ndarray], mesh: Mesh, size: int) -> dict[str, jax.Array]:
    """The global batch of `size`, of which this process holds `rows`."""
    place = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(place, x, (size, *x.shape[1:])) for name, x in rows.items()}


def whole_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, size: int) -> dict[str, jax.Array]:
    """A batch that every process holds in full, split over the mesh where its size allows."""
    place = batch_sharding(mesh) if size % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else replicated(mesh)
    return {name: jax.make_array_from_callback(x.shape, place, x.__getitem__) for name, x in batch.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def describe(tree: Any, mesh: Mesh | AbstractMesh) -> str:
    """A table of the leaves of `tree`: path, array, partition, bytes per device, and what could not be split."""
    rows = list(placements(tree, mesh))
    table = [("path", "array", "partition", "bytes/device", "")]
    for row in rows:
        partition = "(" + ", ".join(axis or "-" for axis in row.spec) + ")" if row.spec else "replicated"
        array = f"{row.dtype}[{','.join(map(str, row.shape))}]"
        table.append((row.path, array, partition, f"{row.bytes_per_device:,}", row.note))
    a, b, c, d = (max(len(line[i]) for line in table) for i in range(4))
    lines = [f"{p:<{a}}  {q:<{b}}  {r:<{c}}  {s:>{d}}  {note}".rstrip() for p, q, r, s, note in table]
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    total = sum(row.bytes_per_device for row in rows)
    return "\n".join([f"mesh {sizes}", *lines, f"total {total:,} bytes a device"])
