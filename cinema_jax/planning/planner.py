"""Compiling a run's programs for a topology that is not at hand."""

import dataclasses
import itertools
import logging
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from cinema_jax.devices import compilation, sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.devices.chips import chip_of, host_shape
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.planning import hosts, program, report
from cinema_jax.planning.hosts import GIB, Hosts
from cinema_jax.planning.report import Report
from cinema_jax.sampling.room import Offload, device_bytes, sampler_mesh
from cinema_jax.training.beginning import check_samples
from cinema_jax.training.phases import check_batches, label, phases, run_in
from cinema_jax.weights.quantised import Kind

logger = logging.getLogger(__name__)

# From the least recomputation to the least memory.
PRESETS = ("dots", "attention", "full", "offload")
# Meshes that a search compiles for.
MOST_MESHES = 4


@dataclasses.dataclass(frozen=True)
class Target:
    """What is planned for: one slice, or several that are alike, joined by the data centre's network."""

    # For example v5p:4x4x4.
    topology: str
    # 0: as many as the config's mesh names.
    slices: int = 0
    # Between a host and the disk or bucket, bytes a second.
    bandwidth: float = hosts.BANDWIDTH

    def count(self, run: Run) -> int:
        """How many slices."""
        return self.slices or max(1, run.config.mesh.slice)


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The chips of a topology, or of several slices of it, on hosts as `launch/` gets them.

    Raises:
        InputError: libtpu is not installed, or does not know the topology.
    """
    options = {"num_slices": slices, "chips_per_host_bounds": host_shape(topology)}
    if topology.startswith("v4:"):
        # Both cores of a chip are one device, as on a slice; libtpu's own default is one device a core.
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
        return list(found.devices)
    except ModuleNotFoundError:
        raise InputError("planning compiles with libtpu, which is not installed: pip install libtpu") from None
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology is {topology!r}, which libtpu refuses: {reason}") from None


def mesh_of(run: Run, target: Target) -> Mesh:
    """The config's mesh over the chips of all slices; raises as it would there."""
    return sharding.make_mesh(**vars(run.config.mesh), devices=devices(target.topology, target.count(run)))


def variants(run: Run, stage: str) -> list[Run]:
    """The run as each program of a stage's steps sees it: in each phase, and of that in each bucket."""
    return [one for phase in phases(run.config, stage) for one in run_in(run, stage, phase).buckets]


def largest(runs: Iterable[Run]) -> list[Run]:
    """Of those that differ in their number of references alone the one of most: which needs most of everything."""
    found: dict[Any, Run] = {}
    for one in runs:
        data = one.config.data
        size = (one.most_frames, data.frames, data.height, data.width)
        if size not in found or data.max_references > found[size].config.data.max_references:
            found[size] = one
    return list(found.values())


def check(run: Run, stage: str, target: Target) -> None:
    """Raises as `train_program` does, of all phases of all stages."""
    mesh = mesh_of(run, target)
    stages = dict.fromkeys((*run.config.stages, stage))
    check_batches(run.config, stages, mesh)
    check_samples(run.config, stages)


def train_program(run: Run, stage: str, mesh: Mesh) -> program.Program:
    """The train step of a stage on `mesh`.

    Raises:
        InputError: `train` would refuse this mesh with this config, be it for another of its stages.
    """
    stages = dict.fromkeys((*run.config.stages, stage))
    check_batches(run.config, stages, mesh)
    check_samples(run.config, stages)
    return program.train_program(run, stage, mesh)


def placement_table(run: Run, stage: str, target: Target) -> str:
    """Where every array of the state, and of the frozen parts, lies."""
    mesh = mesh_of(run, target)
    planned = train_program(run, stage, mesh)
    frozen = sharding.describe(dict(planned.frozen), mesh, WEIGHTS)
    return f"{sharding.describe(planned.state, mesh)}\n\nfrozen parts: {frozen}"


def plan_hosts(run: Run, stage: str, target: Target) -> Hosts:
    """What the train step of a stage asks of the hosts; it is traced, not compiled."""
    mesh = mesh_of(run, target)
    with jax.set_mesh(mesh):
        planned = train_program(run, stage, mesh)
        # Refuses what the models do.
        planned.function.trace(*planned.arguments)
        seconds = planned.flops() / mesh.size / chip_of(target.topology).flops
        bound = hosts.Bound(seconds, "compute alone")
        return hosts.measure(run, stage, target.topology, mesh, planned, bound, target.bandwidth)


def plan_step(run: Run, stage: str, target: Target, whole: Run | None = None) -> Report:
    """Compile the train step of a stage.

    Args:
        whole: of which `run` is a bucket or a phase: its held-out clips lie on the chips meanwhile. None: `run` itself.
    """
    mesh = mesh_of(run, target)
    with jax.set_mesh(mesh):
        planned = train_program(run, stage, mesh)
        name = f"{label(run, stage)} step" + (f" of bucket {run.bucket_name}" if run.bucket_name else "")
        size, held_out = (
            run.config.of_stage(stage).batch_size,
            hosts.held_out_bytes(whole or run, stage, planned.cinema, mesh),
        )
        result = _compile(run, name, target.topology, mesh, planned, size, held_out)
        bound = hosts.Bound(max(filter(None, result.seconds.values())), result.bound or "compute alone")
        asked = hosts.measure(run, stage, target.topology, mesh, planned, bound, target.bandwidth)
        return dataclasses.replace(result, hosts=asked)


def plan_sampler(run: Run, topology: str, offload: Offload = False, weights: Kind | None = None) -> list[Report]:
    """Compile what generates one video, on the mesh that `generate` takes by itself.

    Args:
        offload: what is on the chips only while it is in use.
        weights: what large kernels are, if not numbers.
    """
    mesh = sampler_mesh(devices(topology))
    with jax.set_mesh(mesh):
        programs = program.sampler_programs(run, mesh, offload, weights)
        return [_compile(run, name, topology, mesh, planned, 1) for name, planned in programs.items()]


def search(run: Run, stage: str, target: Target, compiled: Callable[..., Report] = plan_step) -> list[Report]:
    """The presets and meshes that fit, the fastest by the roofline first.

    Of all meshes those are compiled that need to send least, and the most sharded one, which needs least memory: at
    most `MOST_MESHES`, each with one preset after the other until one fits.

    Args:
        compiled: compiles a run's step; takes what `plan_step` does.

    Raises:
        InputError: `train` would refuse every mesh, or nothing fits; says what came closest.
    """
    slices = target.slices or max(1, run.config.mesh.slice)

    def on(fsdp: int, context: int, **dit: Any) -> Run:
        mesh = dataclasses.replace(run.config.mesh, data=-1, fsdp=fsdp, context=context, tensor=1)
        sizes = dataclasses.replace(run.config.dit_model, **dit)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, mesh=mesh, dit_model=sizes))

    sent, refused = {}, None
    for sizes in _meshes(len(devices(target.topology, slices)) // slices):
        mesh = mesh_of(on(*sizes), target)
        try:
            sent[sizes] = sum(report.ideal_wire(train_program(on(*sizes), stage, mesh), mesh).values())
        except InputError as error:
            refused = error
    if not sent:
        raise InputError(f"no mesh of {target.topology} can be used; the last one that was tried: {refused}")
    meshes = chosen(sorted(sent, key=sent.__getitem__))
    logger.info("search: %d meshes, at most %d compilations", len(meshes), len(meshes) * len(PRESETS))
    found, tried = [], []
    for sizes, preset in itertools.product(meshes, PRESETS):
        if sizes in found:
            continue
        tried.append(compiled(on(*sizes, remat=preset), stage, target))
        logger.info("fsdp %d, context %d, %s: %s", *sizes, preset, "fits" if tried[-1].fits else "does not fit")
        if tried[-1].fits:
            found.append(sizes)
    if not found:
        closest = min(tried, key=lambda result: math.inf if result.hbm_gib is None else result.hbm_gib)
        raise InputError(f"none of {len(tried)} programs on {len(meshes)} meshes fits; the closest: {closest.excess}")
    return sorted((result for result in tried if result.fits), key=lambda result: result.seconds[result.bound])


def chosen(meshes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of (fsdp, context), in the order of what they send, those that a search compiles for."""
    first = meshes[:MOST_MESHES]
    most = max(meshes, key=lambda sizes: (math.prod(sizes), sizes), default=None)
    return first if most in first or most is None else [*first[:-1], most]


def _meshes(count: int) -> Iterator[tuple[int, int]]:
    """Sizes of `fsdp` and `context` that divide the chips of a slice."""
    powers = [2**i for i in range(count.bit_length()) if count % 2**i == 0]
    for fsdp, context in itertools.product(powers, (1, 2, 4)):
        if fsdp * context >= min(8, count) and count % (fsdp * context) == 0:
            yield fsdp, context


def _compile(
    run: Run, name: str, topology: str, mesh: Mesh, planned: program.Program, batch: int, held_out: int = 0
) -> Report:
    start = time.perf_counter()
    lowered = planned.function.trace(*planned.arguments).lower()
    trace_s = time.perf_counter() - start
    logger.info("%s: compiling for %s, which takes minutes", name, topology)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # XLA's own account of the memory: what jax hands on counts some buffers twice.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled, needed = compilation.tried(lowered, options)
        if compiled is not None:
            needed = _hbm_bytes(Path(folder)) + _unused_bytes(planned, compiled)
    needed = None if needed is None else (needed + device_bytes(planned.beside)) / GIB
    compile_s = time.perf_counter() - start
    return report.report(
        name,
        topology,
        chip_of(topology),
        mesh,
        planned,
        compiled,
        program_gib=needed,
        held_out_gib=held_out / GIB,
        batch=batch,
        remat=run.config.dit_model.remat,
        flops=planned.flops(),
        trace_s=trace_s,
        compile_s=compile_s,
    )


def _unused_bytes(planned: program.Program, compiled: jax.stages.Compiled) -> int:
    """Of arguments that the program has no use for and jax does not hand on: they lie on the chip all the same."""
    return max(0, device_bytes(planned.arguments) - compiled.memory_analysis().argument_size_in_bytes)


def _hbm_bytes(folder: Path) -> int:
    """Of all buffers in the chip's main memory, as the compiler laid them out."""
    text = next(folder.glob("*memory-usage-report.txt")).read_text()
    return int(re.search(r"\(color=0\)\nTotal bytes: (\d+)", text)[1])
