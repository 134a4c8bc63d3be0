"""What a sampler does on meshes of virtual devices, for `test_sampling_mesh.py`, in a process of its own with eight:

python meshed.py FOLDER leaves there `<name>.npy`, latents on each of `MESHES`, and `found.json`, what is to be seen.
"""

import contextlib
import dataclasses
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from float64 import split_what_is_small
from tiny import random_run, tiny_values

from cinema_jax.config import parse
from cinema_jax.data.example import Reference
from cinema_jax.devices import compilation, sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.planning import program, report
from cinema_jax.sampling import room
from cinema_jax.sampling.requests import Request, Settings
from cinema_jax.sampling.sampler import Sampler, sampler_of

STEPS, REQUESTS = 2, 3
# Sizes of the axes, and how many requests: three do not split over two or four.
MESHES = {
    "one": ({}, REQUESTS),
    "context": ({"context": 4}, 1),
    "data and context": ({"data": 2, "context": 2}, REQUESTS),
    "fsdp": ({"fsdp": 4}, REQUESTS),
    "tensor": ({"tensor": 2}, 1),
}
# Where the programs are compiled before; and where the rest is tried, too, with the batch that `plan` plans for.
CHECKED, FULLY = ("context", "data and context"), "context"


def requests() -> list[Request]:
    """With one reference each, and noise of their own."""
    pictures = np.random.default_rng(0).integers(0, 255, (REQUESTS, 40, 30, 3), dtype=np.uint8)
    return [Request(f"it jumps {'up' * i}", (Reference(x, None, "a"),), seed=i) for i, x in enumerate(pictures)]


def device_bytes(arrays) -> int:
    """What lies on the device that has most of it; what lies with the host aside."""
    sizes = Counter()
    for x in arrays:
        # Nobody looks at the shards: they would be arrays of their own from then on.
        for device in x.sharding.device_set if x.sharding.memory_kind == "device" else ():
            sizes[device] += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return max(sizes.values(), default=0)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of what XLA compiles meanwhile."""
    logger, names = logging.getLogger("jax._src.interpreters.pxla"), []
    handler = logging.Handler()
    handler.emit = lambda record: names.extend(re.findall(r"^Compiling jit\((\w+)\)", record.getMessage()))
    logger.addHandler(handler)
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)


def describe(run: Run, sampler: Sampler, **planned_as: str) -> dict:
    """How the weights lie, and how `plan` says they do."""
    planned = program.sampler_programs(run, sampler.mesh, **planned_as)["decoding"]
    split = [p for p in sharding.placements(sampler.params, sampler.mesh, WEIGHTS) if any(p.spec)]
    shapes = {p.path: {shard.data.shape for shard in sampler.params[p.path].addressable_shards} for p in split}
    return {
        "bytes": device_bytes(sampler.params.values()),
        "planned": report.memory(planned, sampler.mesh)["frozen parts"] * 2**30,
        "split": len(split),
        "whole": [p.path for p in split if p.shape in shapes[p.path]],
    }


def programs_differ(run: Run, sampler: Sampler, settings: Settings, request: Request, **planned_as: str) -> list[str]:
    """The programs of `plan` that are not, word for word, what is called for a request."""
    programs, calls = sampler._programs, {}
    step = "discrete_step" if settings.solver == "dpm" else "step"

    def recorded(name, function):
        return lambda *arguments: calls.setdefault(name, (function, arguments)) and function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("read", step):
            patch.setattr(programs, name, recorded(name, getattr(programs, name)))
        for tiled, function in programs.decode.items():
            patch.setitem(programs.decode, tiled, recorded("decode", function))
        sampler([request], settings)
    planned = program.sampler_programs(run, sampler.mesh, **planned_as)
    with jax.set_mesh(sampler.mesh):
        return [
            name
            for (name, one), (function, arguments) in zip(planned.items(), calls.values(), strict=True)
            if one.function.lower(*one.arguments).as_text() != function.lower(*arguments).as_text()
        ]


def kept(sampler: Sampler, settings: Settings, request: Request) -> dict:
    """What four requests in a row leave in memory, and the most that lies on a device between the steps of each."""
    left, most, before = [], 0, device_bytes(jax.live_arrays())

    def watched(steps):
        nonlocal most
        for latents in steps:
            most = max(most, device_bytes(jax.live_arrays()) - before)
            yield latents

    for _ in range(4):
        video = sampler([request], settings, watched)
        left.append((len(jax.live_arrays()), device_bytes(jax.live_arrays())))
    return {"left": left, "most": most, "video": video.tolist()}


def refusals(sampler: Sampler, settings: Settings) -> dict[str, str]:
    """What is said of devices with little memory, and with enough: nothing."""
    programs = sampler.programs(settings).values()
    given = max(room.device_bytes((arguments[1:], sampler.params)) for _, arguments in programs)
    alone = 0
    with jax.set_mesh(sampler.mesh):
        for function, arguments in programs:
            compiled = function.lower(*arguments).compile()
            # Arguments that it has no use for lie there as well.
            beside = room.device_bytes(arguments) - compiled.memory_analysis().argument_size_in_bytes
            alone = max(alone, compilation.peak_bytes(compiled) + max(0, beside))
    said = {}
    for name, limit, offload in (
        ("weights", 1, False),
        ("a part's weights", 1, True),
        ("activations", given, False),
        ("all", alone, False),
        ("one part at a time", alone, True),
    ):
        try:
            room.check(sampler, settings, 1, limit, offload=offload)
        except InputError as error:
            said[name] = str(error)
    return said


def main(folder: Path) -> None:
    """All meshes."""
    split_what_is_small()
    values = tiny_values()
    values.dit_model.num_attention_heads = 4
    run = Run.load(random_run(folder / "run", parse(values)))
    asked, found, before = requests(), {}, []
    for name, (sizes, count) in MESHES.items():
        mesh = room.sampler_mesh(jax.devices()[: math.prod(sizes.values())], **sizes)
        sampler = sampler_of(run, mesh=mesh)
        settings = sampler.settings(steps=STEPS)
        if name in CHECKED:
            with compilations() as before:
                room.check(sampler, settings, count, 2**40, offload=False)
        with compilations() as after:
            np.save(folder / f"{name}.npy", sampler.latents(asked[:count], settings))
        found[name] = describe(run, sampler) | {"before": before, "compiled": after}
        if name == FULLY:
            found["different programs"] = programs_differ(run, sampler, settings, asked[0])
            found["kept"] = kept(sampler, settings, asked[0])
            found["refusals"] = refusals(sampler, settings)
            away = sampler_of(run, mesh=mesh, offload=True)
            found["away"] = all(map(sharding.is_away, away.params.values()))
            found["step"] = room.device_bytes(list(sampler.programs(settings).values())[1][1])
            sampler.params = away.params
            found["offloaded"] = kept(sampler, settings, asked[0])
            streaming = sampler_of(run, mesh=mesh, offload="layers")
            found["layers"] = streaming(asked[:1], settings).tolist()
            found["step of layers"] = room.device_bytes(list(streaming.programs(settings).values())[1][1])
            flow = dataclasses.replace(run.config.flow, prediction="v_prediction", solver="dpm", sample_steps=STEPS)
            discrete = dataclasses.replace(run, config=dataclasses.replace(run.config, flow=flow))
            sampler.cinema.config = discrete.config
            found["different programs"] += programs_differ(discrete, sampler, sampler.settings(), asked[0])
    for name, sizes in (("int8 on one", {}), ("int8", {"context": 4})):
        mesh = room.sampler_mesh(jax.devices()[: math.prod(sizes.values())], **sizes)
        sampler = sampler_of(run, mesh=mesh, weights="int8")
        np.save(folder / f"{name}.npy", sampler.latents(asked[:1], settings))
    found["int8"] = describe(run, sampler, weights="int8")
    found["different programs"] += programs_differ(run, sampler, settings, asked[0], weights="int8")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
