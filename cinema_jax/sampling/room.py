"""What a sampler runs on, and whether it has room there: known before weights are read."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from cinema_jax.devices import compilation, sharding
from cinema_jax.errors import InputError

_GIB = 2**30


def sampler_mesh(devices: Sequence[Any] | None = None, **sizes: int) -> Mesh:
    """The mesh of a sampler over `devices` (default: all of all processes).

    Args:
        sizes: of the axes that are not 1. By default the tokens of a video are split over all devices of a slice.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    sizes = {"data": 1, "context": 1 if sizes else -1} | sizes
    return sharding.make_mesh(**sizes, devices=devices)


def memory(mesh: Mesh) -> int | None:
    """Bytes that a program may use on each of the mesh's devices; None: they do not say, as CPUs."""
    stats = mesh.local_devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def check(sampler: Any, settings: Any, count: int, limit: int, *, offload: bool) -> None:
    """Compile what a sampler will run, which it then need not do, and compare what that takes with what there is.

    Args:
        sampler: a `Sampler` with a mesh; its weights may be abstract.
        settings: of the videos.
        count: of the requests of a batch.
        limit: bytes of a device.
        offload: parts are on the devices only while they are in use.

    Raises:
        InputError: there is less.
    """
    for name, (function, arguments) in sampler.programs(settings, count).items():
        beside = {} if offload else {path: x for path, x in sampler.params.items() if path not in arguments[0]}
        needed, known = device_bytes((arguments, beside)), True
        # Weights alone may be too much: then nothing need be compiled.
        if needed <= limit:
            with jax.set_mesh(sampler.mesh):
                compiled, said = compilation.tried(function.lower(*arguments))
            known = compiled is not None or said is not None
            needed = device_bytes(beside) + (compilation.peak_bytes(compiled) if compiled else said or limit)
            if compiled and needed <= limit:
                continue
        size = f"{needed / _GIB:.1f} of" if known else "more than"
        whole = name == "decoding" and not settings.tiled_decoding
        axes = {axis: size for axis, size in sampler.mesh.shape.items() if size > 1}
        on = " x ".join(f"{axis} {size}" for axis, size in axes.items()) or "one device"
        raise InputError(
            f"{name} on {on}, {_videos(count)} of {settings.frames}x{settings.height}x{settings.width}, needs {size} "
            f"{limit / _GIB:.1f} GiB a device: take {_advice(offload, count, whole)}"
        )


def _videos(count: int) -> str:
    return "a video" if count == 1 else f"{count} videos"


def _advice(offload: bool, count: int, whole: bool) -> str:
    """What would need less; `whole`: of a video that is decoded without tiles."""
    ways = ["--tiled-decoding"] * whole + ([] if offload else ["--offload"])
    ways += ["a smaller --batch-size"] * (count > 1)
    return f"{', '.join([*ways, 'more devices'])} or a smaller video"


def device_bytes(tree: Any) -> int:
    """What arrays, or abstract ones, take on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
