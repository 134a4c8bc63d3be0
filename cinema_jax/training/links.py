"""Whether the axes of a mesh connect the devices that they should."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def broken(mesh: Mesh) -> list[str]:
    """Axes over which this process's devices get another sum, or other numbers, than the devices there put in.

    Every process must call this. Each device puts in its own number.
    """
    numbers = _numbers(mesh)
    place = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    put_in = jax.make_array_from_callback(numbers.shape, place, numbers.__getitem__)
    where = {device: position for position, device in np.ndenumerate(mesh.devices)}
    problems = []
    for number, axis in enumerate(mesh.axis_names):
        if mesh.shape[axis] == 1:
            continue
        wrong = []
        total, gathered = map(_of_devices, _exchange(mesh, axis)(put_in))
        for device in total:
            line = tuple(slice(None) if i == number else at for i, at in enumerate(where[device]))
            expected = np.arange(1, mesh.size + 1).reshape(numbers.shape)[line]
            if total[device].item() != expected.sum() or list(gathered[device].ravel()) != list(expected):
                wrong.append(str(device.id))
        if wrong:
            problems.append(f"over {axis} a sum or gather came out wrong on device {', '.join(wrong)}")
    return problems


def _numbers(mesh: Mesh) -> np.ndarray:
    """What each device puts in: its place in the mesh, counted from 1."""
    return np.arange(1, mesh.size + 1, dtype=np.int32).reshape(mesh.devices.shape)


def _exchange(mesh: Mesh, axis: str) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    spec, number = PartitionSpec(*mesh.axis_names), mesh.axis_names.index(axis)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def exchange(x):
        return jax.lax.psum(x, axis), jax.lax.all_gather(x, axis, axis=number, tiled=True)

    return exchange


def _of_devices(array: jax.Array) -> dict[jax.Device, np.ndarray]:
    return {shard.device: np.asarray(shard.data) for shard in array.addressable_shards}
