"""The mesh, and one table that places every array of a train state.

Modules carry no sharding annotation. A leaf's place follows from its path alone: `RULES` is searched from the top for a
pattern at the end of the path, so that a parameter, its average and its optimizer moments always lie alike.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.typing import ArrayLike

from cinema_jax.devices.axes import AXES, BATCH, FSDP, STATE, TENSOR, WEIGHTS
from cinema_jax.errors import InputError

VOCABULARY = r"embedding|token_embedding"
# What `models.layers.stack_layers` makes: its arrays have a leading `layer` axis.
STACKED = r"(^|/)(blocks|layers)/(?!\d)"

# What projects back to the residual stream.
_TO_STREAM = r"to_out|o|o_proj|proj|proj_out|output_projection|down|down_proj|wo|fc2"

# (pattern at the end of a path, mesh axes of the *last* array axes). The first match wins. Leading array axes that a
# rule does not speak of (the `layer` axis of stacked layers, the window of a convolution) are not split.
Axes = tuple[str, ...]
# Stands for the axes that state, or weights in use, are split over.
SPLIT = ("split",)
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # One value per channel, or per head and bucket: every device needs all of it, and few are large.
    (r"\w*bias|scale", (SPLIT,)),
    # Of a kernel that is codes, one for each output channel: as that axis of the kernel.
    (rf"({_TO_STREAM})/kernel_scale", (SPLIT,)),
    (r"kernel_scale", ((TENSOR,),)),
    # Vocabularies: (words, width).
    (VOCABULARY, ((TENSOR,), SPLIT)),
    # Convolutions of the VAEs, (..., in, out): gathered before use; splitting `in` would sum activations instead.
    (r"(\w*conv\w*|resample)/kernel", ((), SPLIT)),
    # Patches, (..., in, out), of few or odd numbers.
    (r"patch_embed/kernel", ((), SPLIT)),
    # Projections back to the residual stream, (in, out): split by rows, so that one all-reduce follows.
    (rf"({_TO_STREAM})/kernel", ((TENSOR,), SPLIT)),
    # Every other projection, (in, out): split by columns.
    (r"kernel", (SPLIT, (TENSOR,))),
    # What is left (learned latents, counters, random keys) is small.
    (r".*", ()),
)
# Vectors, and stacks of them, of fewer numbers lie whole on every device: gathering them would cost more than it saves.
SMALL = 1 << 18
# Weights are split over so many devices where a config leaves it open. More would save little memory, and on some
# topologies XLA gathers weights over 64 chips, or reduces their gradients, by all-reduce, which doubles the bytes.
AUTOMATIC_FSDP = 16
# Memory of a device's host, from and to which the device copies by itself.
HOST = "pinned_host"


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
    data: int = -1,
    fsdp: int = 1,
    context: int = 1,
    tensor: int = 1,
    slice: int = 0,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with the axes `slice, data, fsdp, context, tensor` over `devices` (default: all).

    One size may be -1: it takes the devices that the others leave. `fsdp` may be 0: the largest power of two, up to 16,
    that divides what the others leave. `slice` 0: as many as the devices come from.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    # Hosts of GPUs count as slices too, and a mesh may well cut across them.
    found = sorted({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    slice = slice or max(1, len(found))
    shape = tuple(mesh_shape(len(devices), data, fsdp, context, tensor, slice).values())
    if len(found) not in (0, 1, slice):
        raise InputError(f"mesh slice {slice} does not fit devices of {len(found)} slices: it must be {len(found)}")
    if slice == 1:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    # Devices without slices of their own (those of a host) are cut into equal groups.
    size = len(devices) // slice
    groups = (
        [[device for device in devices if device.slice_index == index] for index in found]
        if len(found) == slice
        else [devices[i * size : (i + 1) * size] for i in range(slice)]
    )
    arranged = [mesh_utils.create_device_mesh(shape[1:], group, allow_split_physical_axes=True) for group in groups]
    return Mesh(np.stack(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(
    count: int, data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1, slice: int = 1
) -> dict[str, int]:
    """The sizes of the axes of `make_mesh` for `count` devices; raises like it."""
    sizes = dict(zip(AXES, (slice, data, fsdp, context, tensor), strict=True))
    asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if any(size < 1 and (axis, size) != (FSDP, 0) and size != -1 for axis, size in sizes.items()):
        raise InputError(f"mesh {asked}: every axis must be at least 1, or -1 (fill); fsdp also 0 (automatic)")
    if list(sizes.values()).count(-1) > 1:
        raise InputError(f"mesh {asked}: at most one axis may be -1 (fill)")
    if fsdp == 0:
        others = math.prod(size for axis, size in sizes.items() if size > 0)
        sizes[FSDP] = math.gcd(AUTOMATIC_FSDP, count // others) if count % others == 0 else 1
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: count // known if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != count:
        raise InputError(
            f"mesh {asked} does not fit {count} devices: the product must be {count}, or one axis -1 (fill)"
        )
    return sizes


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as `opt_state/0/mu/dit/blocks/to_q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rule(path: str) -> tuple[Axes, ...]:
    """The mesh axes that the table gives to the last axes of the array at `path`."""
    return next(axes for pattern, axes in RULES if re.search(rf"(^|/)({pattern})$", path))


def placements(tree: Any, mesh: Mesh | AbstractMesh, split: Axes = STATE) -> Iterator[Placement]:
    """The place of every leaf of `tree` (arrays, abstract arrays or tracers) on `mesh`.

    An array axis that its mesh axes do not divide is split over fewer of them, or stays whole, with a note.

    Args:
        split: `STATE`, or `WEIGHTS` for what a computation uses.
    """
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path, shape, dtype = path_name(keys), tuple(leaf.shape), np.dtype(leaf.dtype)
        # A rule longer than the shape belongs to another array: factored moments share the path of their parameter.
        axes = rule(path)
        small = len(axes) == 1 and math.prod(shape) < SMALL
        axes = ((),) * (len(shape) - len(axes)) + axes if len(axes) <= len(shape) and not small else ((),) * len(shape)
        kept, notes = [], []
        for size, wanted in zip(shape, axes, strict=True):
            wanted = tuple(axis for axis in (split if wanted is SPLIT else wanted) if mesh.shape[axis] > 1)
            # As many of the axes as divide.
            fitting = next(
                wanted[:n]
                for n in range(len(wanted), -1, -1)
                if size % math.prod(mesh.shape[axis] for axis in wanted[:n]) == 0
            )
            kept.append(fitting)
            if fitting != wanted:
                asked = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in wanted)
                notes.append(f"{asked} does not divide {size}: kept {'whole' if not fitting else 'in fewer parts'}")
        ways = math.prod(mesh.shape[axis] for axes in kept for axis in axes)
        entries = [axes[0] if len(axes) == 1 else axes or None for axes in kept]
        spec = PartitionSpec(*entries) if any(entries) else PartitionSpec()
        size = math.prod(shape) * dtype.itemsize // ways
        yield Placement(path, shape, str(dtype), spec, size, "; ".join(notes))


def in_use(path: str, x: ArrayLike) -> ArrayLike:
    """A parameter of the state as the computation holds it, split over `WEIGHTS`; its gradient comes back as `STATE`.

    Without a mesh in use, `x` as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # What lies with the host is not trained.
    if not _ours(mesh) or (isinstance(x, jax.core.Tracer) and is_away(x)):
        return x
    return _moved(x, *(_spec(path, x.shape, mesh, split) for split in (WEIGHTS, STATE)))


def gathered(path: str, x: ArrayLike, layers: int | None = None) -> ArrayLike:
    """A parameter as a product wants it: whole but for the `tensor` axis; its gradient comes back split.

    Written out, because XLA may otherwise move activations instead. Vocabularies stay split: their rows are looked up.
    Without a mesh in use, `x` as it is.

    Args:
        layers: `x` is one row of an array that stacks so many.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _ours(mesh) or re.search(rf"(^|/)({VOCABULARY})$", path):
        return x
    split = (
        _spec(path, x.shape, mesh, WEIGHTS) if layers is None else _spec(path, (layers, *x.shape), mesh, WEIGHTS)[1:]
    )
    return _moved(x, PartitionSpec(*(TENSOR if entry == TENSOR else None for entry in split)), PartitionSpec(*split))


def gathered_layer(layer: Any, layers: int) -> Any:
    """The same for every parameter of one of `layers` stacked layers, by its path in it."""

    def gather(keys, leaf):
        # Flax's variables have a key of their own.
        return gathered(path_name(keys).removesuffix("/value"), leaf, layers)

    return jax.tree_util.tree_map_with_path(gather, layer)


def _ours(mesh: AbstractMesh) -> bool:
    return not mesh.empty and set(AXES) <= set(mesh.axis_names)


def _spec(path: str, shape: tuple[int, ...], mesh: AbstractMesh, split: Axes) -> PartitionSpec:
    (placement,) = placements({path: jax.ShapeDtypeStruct(shape, np.float32)}, mesh, split)
    return placement.spec


def _moved(x: ArrayLike, there: PartitionSpec, back: PartitionSpec) -> ArrayLike:
    return x if there == back else _laid_out(x, there, back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _laid_out(x, there, back):
    return jax.lax.with_sharding_constraint(x, there)


_laid_out.defvjp(
    lambda x, there, back: (_laid_out(x, there, back), None),
    lambda there, back, _, gradient: (jax.lax.with_sharding_constraint(gradient, back),),
)


def shardings(tree: Any, mesh: Mesh | AbstractMesh, split: Axes = STATE) -> Any:
    """`tree` with a `NamedSharding` for every leaf: the whole train state is placed by this."""
    leaves = [NamedSharding(mesh, placement.spec) for placement in placements(tree, mesh, split)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def abstract(tree: Any, mesh: Mesh | AbstractMesh, split: Axes = STATE) -> Any:
    """`tree` as `jax.ShapeDtypeStruct`s that carry their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, split),
    )


def place(tree: Any, mesh: Mesh, split: Axes = STATE, memory: str | None = None) -> Any:
    """`tree` on the mesh, by the table. Arrays of the host must be the same in every process.

    Of anything but a `jax.Array` each device's slice is read alone, and is on the device before the next one is read.

    Args:
        memory: `HOST`: each device's slices lie with its host, until `on_devices` brings them.
    """

    def put(leaf, sharding):
        sharding = sharding.with_memory_kind(memory) if memory else sharding
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        slices, blocks = sharding.addressable_devices_indices_map(tuple(leaf.shape)), {}
        for device, index in slices.items():
            key = tuple((s.start, s.stop) for s in index)
            # The same slice on several devices is read once.
            first = blocks.get(key, [None])[0]
            there = SingleDeviceSharding(device, memory_kind=memory)
            blocks.setdefault(key, []).append(jax.device_put(leaf[index] if first is None else first, there))
            jax.block_until_ready(blocks[key])
        placed = [block for copies in blocks.values() for block in copies]
        return jax.make_array_from_single_device_arrays(tuple(leaf.shape), sharding, placed)

    return jax.tree.map(put, tree, shardings(tree, mesh, split))


def is_away(x: Any) -> bool:
    """Whether an array, be it abstract or one that is traced, lies in `HOST` memory."""
    if isinstance(x, jax.core.Tracer):
        return jax.typeof(x).memory_space == jax.memory.Space.Host
    placed = isinstance(x, jax.Array | jax.ShapeDtypeStruct) and x.sharding is not None
    return placed and x.sharding.memory_kind == HOST


def on_devices(tree: Any) -> Any:
    """`tree` with copies on the devices of what lies in `HOST` memory; they go when nobody holds them."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")) if is_away(x) else x, tree)


def fetched(tree: Any) -> Any:
    """The same where it is traced: what lies with the host is copied to the devices."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if is_away(x) else x, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `slice`, `data` and `fsdp`; devices that differ in the other axes hold the same rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def host_rows(mesh: Mesh, size: int) -> dict[int, tuple[int, ...]]:
    """The rows of a global batch of `size` that each process's devices hold, in ascending order, by process index.

    On real slices a host is a block of the torus, so its rows are seldom neighbours, and processes whose devices differ
    only along `context` or `tensor` hold the same ones. The devices may belong to a topology that is not at hand.

    Raises:
        InputError: the batch does not split over the mesh.
    """
    parts = batch_parts(mesh)
    if size % parts:
        raise InputError(f"a batch of {size} does not split into slice x data x fsdp = {parts}: take a multiple of it")
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((size,)).items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(size)))
    return {process: tuple(sorted(held[process])) for process in sorted(held)}


def local_rows(mesh: Mesh, size: int) -> tuple[int, ...]:
    """Those of this process, which it must load; raises like `host_rows`."""
    return host_rows(mesh, size)[jax.process_index()]


def global_batch(rows: Mapping[str, np.ndarray], mesh: Mesh, size: int) -> dict[str, jax.Array]:
    """The global batch of `size`, of which this process holds `rows`: those of `local_rows`, in that order."""
    place = batch_sharding(mesh)
    position = {row: i for i, row in enumerate(local_rows(mesh, size))}

    def array(x: np.ndarray) -> jax.Array:
        if len(x) != len(position):
            raise ValueError(f"this process holds {len(position)} rows of a batch of {size}, and was given {len(x)}")

        # The rows of one device are neighbours, and so they are among those of its process.
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[0].indices(size)
            return x[position[first] : position[first] + stop - first]

        return jax.make_array_from_callback((size, *x.shape[1:]), place, shard)

    return {name: array(x) for name, x in rows.items()}


def whole_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, size: int) -> dict[str, jax.Array]:
    """A batch that every process holds in full, split over the mesh where its size allows."""
    place = batch_sharding(mesh) if size % batch_parts(mesh) == 0 else replicated(mesh)
    return {name: jax.make_array_from_callback(x.shape, place, x.__getitem__) for name, x in batch.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def describe(tree: Any, mesh: Mesh | AbstractMesh, split: Axes = STATE) -> str:
    """A table of the leaves of `tree`: path, array, partition, bytes per device, and what could not be split."""
    rows = list(placements(tree, mesh, split))
    table = [("path", "array", "partition", "bytes/device", "")]
    for row in rows:
        entries = ["*".join(axes) if isinstance(axes, tuple) else axes or "-" for axes in row.spec]
        partition = f"({', '.join(entries)})" if entries else "replicated"
        array = f"{row.dtype}[{','.join(map(str, row.shape))}]"
        table.append((row.path, array, partition, f"{row.bytes_per_device:,}", row.note))
    a, b, c, d = (max(len(line[i]) for line in table) for i in range(4))
    lines = [f"{p:<{a}}  {q:<{b}}  {r:<{c}}  {s:>{d}}  {note}".rstrip() for p, q, r, s, note in table]
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    total = sum(row.bytes_per_device for row in rows)
    return "\n".join([f"mesh {sizes}", *lines, f"total {total:,} bytes a device"])
