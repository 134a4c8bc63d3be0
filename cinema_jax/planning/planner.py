"""Compiling a run's programs for a topology that is not at hand."""

import dataclasses
import itertools
import logging
import math
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from cinema_jax import sharding
from cinema_jax.axes import WEIGHTS
from cinema_jax.chips import chip_of
from cinema_jax.errors import InputError
from cinema_jax.planning import program, report
from cinema_jax.planning.report import GIB, Report
from cinema_jax.training.run import Run

logger = logging.getLogger(__name__)

# From the least recomputation to the least memory.
PRESETS = ("dots", "attention", "full", "offload")
# Meshes that a search compiles for.
MOST_MESHES = 4


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The chips of a topology, or of several slices of it.

    Raises:
        InputError: libtpu is not installed, or does not know the topology.
    """
    chip_of(topology)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices)
        return list(found.devices)
    except ModuleNotFoundError:
        raise InputError("planning compiles with libtpu, which is not installed: pip install libtpu") from None
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology is {topology!r}, which libtpu refuses: {reason}") from None


def mesh_of(run: Run, topology: str) -> Mesh:
    """The config's mesh over the chips of a topology, for each of its slices."""
    mesh = run.config.mesh
    return sharding.make_mesh(**vars(mesh), devices=devices(topology, max(1, mesh.slice)))


def placement_table(run: Run, stage: str, topology: str) -> str:
    """Where every array of the state, and of the frozen parts, lies."""
    mesh = mesh_of(run, topology)
    planned = program.train_program(run, stage, mesh)
    frozen = sharding.describe(dict(planned.frozen), mesh, WEIGHTS)
    return f"{sharding.describe(planned.state, mesh)}\n\nfrozen parts: {frozen}"


def plan_step(run: Run, stage: str, topology: str) -> Report:
    """Compile the train step of a stage."""
    mesh = mesh_of(run, topology)
    with jax.set_mesh(mesh):
        planned = program.train_program(run, stage, mesh)
        name = f"{stage} step" + (f" of bucket {run.bucket_name}" if run.bucket_name else "")
        return _compile(run, name, topology, mesh, planned, getattr(run.config, stage).batch_size)


def plan_sampler(run: Run, topology: str) -> list[Report]:
    """Compile what generates one video, its tokens split over all chips of the topology."""
    mesh = sharding.make_mesh(data=1, fsdp=1, context=-1, devices=devices(topology))
    with jax.set_mesh(mesh):
        programs = program.sampler_programs(run, mesh)
        return [_compile(run, name, topology, mesh, planned, 1) for name, planned in programs.items()]


def search(run: Run, stage: str, topology: str) -> list[Report]:
    """The presets and meshes that fit, the fastest by the roofline first.

    Of all meshes those are compiled that need to send least, and on each the first preset that fits. All meshes have as
    many tokens on a chip, so a preset that did not fit on one is not tried on the next.
    """
    slices = max(1, run.config.mesh.slice)
    count, batch = len(devices(topology, slices)) // slices, getattr(run.config, stage).batch_size // slices

    def on(fsdp: int, context: int, **dit: Any) -> Run:
        mesh = dataclasses.replace(run.config.mesh, data=-1, fsdp=fsdp, context=context, tensor=1)
        sizes = dataclasses.replace(run.config.dit_model, **dit)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, mesh=mesh, dit_model=sizes))

    def sent(sizes: tuple[int, int]) -> float:
        mesh = mesh_of(on(*sizes), topology)
        return sum(report.ideal_wire(program.train_program(on(*sizes), stage, mesh), mesh).values())

    found, presets = [], list(PRESETS)
    for sizes in sorted(_meshes(count, batch), key=sent)[:MOST_MESHES]:
        while presets:
            result = plan_step(on(*sizes, remat=presets[0]), stage, topology)
            verdict = "fits" if result.fits else "does not fit"
            logger.info("fsdp %d, context %d, %s: %s", *sizes, presets[0], verdict)
            if result.fits:
                found.append(result)
                break
            presets.pop(0)
    return sorted(found, key=lambda result: max(result.seconds.values()))


def _meshes(count: int, batch: int) -> Iterator[tuple[int, int]]:
    """Sizes of `fsdp` and `context` that divide the chips and leave each row of the mesh a whole number of samples."""
    powers = [2**i for i in range(count.bit_length()) if count % 2**i == 0]
    for fsdp, context in itertools.product(powers, (1, 2, 4)):
        if fsdp * context >= min(8, count) and count % (fsdp * context) == 0 and batch % (count // context) == 0:
            yield fsdp, context


def _compile(run: Run, name: str, topology: str, mesh: Mesh, planned: program.Program, batch: int) -> Report:
    start = time.perf_counter()
    lowered = planned.function.trace(*planned.arguments).lower()
    trace_s = time.perf_counter() - start
    logger.info("%s: compiling for %s, which takes minutes", name, topology)
    start, compiled, needed = time.perf_counter(), None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        # XLA's own account of the memory: what jax hands on counts some buffers twice.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
            needed = (_hbm_bytes(Path(folder)) + _unused_bytes(planned, compiled)) / GIB
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sizes = re.findall(r"\(([\d.]+)G\) exceeds", str(error)) or ["inf"]
            needed = float(sizes[0])
    compile_s = time.perf_counter() - start
    return report.report(
        name,
        topology,
        chip_of(topology),
        mesh,
        planned,
        compiled,
        hbm_gib=needed,
        batch=batch,
        remat=run.config.dit_model.remat,
        flops=planned.flops(),
        trace_s=trace_s,
        compile_s=compile_s,
    )


def _unused_bytes(planned: program.Program, compiled: jax.stages.Compiled) -> int:
    """Of arguments that the program has no use for and jax does not hand on: they lie on the chip all the same."""
    leaves = jax.tree.leaves(planned.arguments)
    given = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    return max(0, given - compiled.memory_analysis().argument_size_in_bytes)


def _hbm_bytes(folder: Path) -> int:
    """Of all buffers in the chip's main memory, as the compiler laid them out."""
    text = next(folder.glob("*memory-usage-report.txt")).read_text()
    return int(re.search(r"\(color=0\)\nTotal bytes: (\d+)", text)[1])
