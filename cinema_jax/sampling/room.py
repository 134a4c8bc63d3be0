"""What a sampler runs on, and whether it has room there: known before weights are read."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from cinema_jax.devices import compilation, sharding
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.models.quantised import large_kernels
from cinema_jax.sampling import programs

_GIB = 2**30
# Parts are on the devices only while they are in use; "layers": of the transformer's layers, two at a time.
Offload = bool | Literal["layers"]
# Of the number of devices, in what is advised.
_MOST_DOUBLINGS = 6


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


@dataclasses.dataclass(frozen=True)
class Need:
    """What one program takes of each device, in bytes.

    Attributes:
        program: conditions, a step, or decoding.
        weights: of each part that lies there meanwhile, its own and those of other programs.
        rest: inputs, activations and results; None: not known, because weights alone are too much for the device, or
            the compiler, which found no room, does not say.
        limit: what there is; None: the device does not say, as CPUs.
    """

    program: str
    weights: Mapping[str, int]
    rest: int | None
    limit: int | None

    @property
    def total(self) -> int:
        """All of it, as far as it is known."""
        return sum(self.weights.values()) + (self.rest or 0)

    @property
    def fits(self) -> bool:
        """Whether there is as much; where the device does not say, it counts as enough."""
        return self.limit is None or (self.rest is not None and self.total <= self.limit)

    def __str__(self) -> str:
        of = "" if self.limit is None else f" of {self.limit / _GIB:.2f}"
        parts = [f"{part} {size / _GIB:.2f}" for part, size in self.weights.items()]
        parts += ["the rest unknown" if self.rest is None else f"the rest {self.rest / _GIB:.2f}"]
        verdict = "" if self.fits else "; does NOT fit"
        return f"{self.program}: {self.total / _GIB:.2f}{of} GiB a device ({', '.join(parts)}){verdict}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What making videos takes of each device, program by program; as text a line for each.

    Attributes:
        mesh: the sizes of its axes.
        videos: how many at once, and of which size.
        needs: of the programs, in the order in which they run.
    """

    mesh: Mapping[str, int]
    videos: str
    needs: tuple[Need, ...]

    @property
    def fits(self) -> bool:
        """Whether all programs have room."""
        return all(need.fits for need in self.needs)

    def __str__(self) -> str:
        return "\n".join([f"{self.videos} on {_on(self.mesh)}", *map(str, self.needs)])


def plan(sampler: Any, settings: Any, count: int, *, offload: Offload, limit: int | None = None) -> Plan:
    """Compile what a sampler will run, which it then need not do, and say what that takes; arguments as for `check`."""
    needs = tuple(need for need, _ in _needs(sampler, settings, count, limit, offload))
    return Plan(dict(sampler.mesh.shape), _videos(settings, count), needs)


def check(sampler: Any, settings: Any, count: int, limit: int, *, offload: Offload) -> None:
    """Compile what a sampler will run, which it then need not do, and compare what that takes with what there is.

    Args:
        sampler: a `Sampler` with a mesh; its weights may be abstract.
        settings: of the videos.
        count: of the requests of a batch.
        limit: bytes of a device.
        offload: what is on the devices only while it is in use.

    Raises:
        InputError: there is less; it names what would be enough, as far as that is known.
    """
    for need, ways in _needs(sampler, settings, count, limit, offload):
        if not need.fits:
            whole = need.program == "decoding" and not settings.tiled_decoding
            size = "more than" if need.rest is None and need.total <= limit else f"{need.total / _GIB:.1f} of"
            raise InputError(
                f"{need.program} on {_on(sampler.mesh.shape)}, {_videos(settings, count)}, needs {size} "
                f"{limit / _GIB:.1f} GiB a device: take {_advice(need, ways, sampler.mesh.size, offload, count, whole)}"
            )


def _needs(
    sampler: Any, settings: Any, count: int, limit: int | None, offload: Offload
) -> Iterator[tuple[Need, dict[str, int]]]:
    """What each program takes, and how many bytes less with some flags."""
    for name, (function, arguments) in sampler.programs(settings, count).items():
        own = arguments[0]
        beside = {} if offload else {path: x for path, x in sampler.params.items() if path not in own}
        there, rest = {**own, **beside}, None
        names = dict.fromkeys(path.split("/")[0] for path in there)
        weights = {part: device_bytes(programs.of_parts(there, (part,))) for part in names}
        # Weights alone may be too much: then nothing need be compiled.
        if limit is None or device_bytes((arguments, beside)) <= limit:
            with jax.set_mesh(sampler.mesh):
                compiled, said = compilation.tried(function.lower(*arguments))
            total = _bytes_of(compiled, arguments) if compiled else said
            rest = None if total is None else total - device_bytes(own)
        ways = {} if sampler.cinema.quantised or offload == "layers" else {"--weights=int8": _saved_by_codes(there)}
        ways |= {} if offload else {"--offload": device_bytes(beside)}
        yield Need(name, weights, rest, limit), ways


def _bytes_of(compiled: jax.stages.Compiled, arguments: Any) -> int:
    """What a program takes, with those of its arguments that it has no use for: they lie there all the same."""
    unused = device_bytes(arguments) - compiled.memory_analysis().argument_size_in_bytes
    return compilation.peak_bytes(compiled) + max(0, unused)


def _saved_by_codes(there: Mapping[str, Any]) -> int:
    """Bytes of each device; the scales are few."""
    large = [there[path] for path in large_kernels(there) if path.split("/")[0] in parts.QUANTISED]
    return sum(device_bytes(x) * (x.dtype.itemsize - 1) // x.dtype.itemsize for x in large)


def _videos(settings: Any, count: int) -> str:
    what = "a video" if count == 1 else f"{count} videos"
    return f"{what} of {settings.frames}x{settings.height}x{settings.width}"


def _on(mesh: Mapping[str, int]) -> str:
    axes = {axis: size for axis, size in mesh.items() if size > 1}
    return " x ".join(f"{axis} {size}" for axis, size in axes.items()) or "one device"


def _advice(need: Need, ways: Mapping[str, int], devices: int, offload: Offload, count: int, whole: bool) -> str:
    """What would be enough; where that is not known, what would need less.

    Args:
        whole: a video is decoded without tiles.
    """
    if need.rest is not None:
        enough = [way for way, saved in ways.items() if need.total - saved <= need.limit]
        times = next((2**i for i in range(1, _MOST_DOUBLINGS) if need.total / 2**i <= need.limit), None)
        enough += [f"about {devices * times} devices"] if times else []
        if enough and not whole:
            return " or ".join([", ".join(enough[:-1])] * (len(enough) > 1) + enough[-1:])
    less = [
        *["--tiled-decoding"] * whole,
        *ways,
        *["--offload=layers"] * (offload is True),
        *["a smaller --batch-size"] * (count > 1),
    ]
    return f"{', '.join([*less, 'more devices'])} or a smaller video"


def device_bytes(tree: Any) -> int:
    """What arrays, or abstract ones, take on each device; what lies with the host aside."""
    leaves = [x for x in jax.tree.leaves(tree) if not sharding.is_away(x)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
