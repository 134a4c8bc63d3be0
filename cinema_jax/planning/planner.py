"""Compiling a run's programs for a topology that is not at hand."""

import logging
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from cinema_jax import sharding
from cinema_jax.errors import InputError
from cinema_jax.flops import matmul_flops
from cinema_jax.planning import program, report
from cinema_jax.planning.chips import chip_of
from cinema_jax.planning.report import Report
from cinema_jax.training.run import Run

logger = logging.getLogger(__name__)


def devices(topology: str) -> list[Any]:
    """The chips of a topology.

    Raises:
        InputError: libtpu is not installed, or does not know the topology.
    """
    chip_of(topology)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        if "libtpu" in str(error) or isinstance(error, ModuleNotFoundError):
            raise InputError(
                f"planning compiles with libtpu, which is not here (pip install libtpu): {error}"
            ) from None
        raise InputError(f"--topology is {topology!r}, which libtpu refuses: {error}") from None


def mesh_of(run: Run, topology: str) -> Mesh:
    """The config's mesh over the chips of a topology."""
    return sharding.make_mesh(**vars(run.config.mesh), devices=devices(topology))


def placement_table(run: Run, stage: str, topology: str) -> str:
    """Where every array of the state and of the frozen parts lies."""
    mesh = mesh_of(run, topology)
    planned = program.train_program(run, stage, mesh)
    return sharding.describe({"state": planned.state, "frozen": dict(planned.frozen)}, mesh)


def plan_step(run: Run, stage: str, topology: str) -> Report:
    """Compile the train step of a stage."""
    mesh = mesh_of(run, topology)
    section = getattr(run.config, stage)
    with jax.set_mesh(mesh):
        planned = program.train_program(run, stage, mesh)
        return _compile(run, topology, mesh, planned, section.batch_size)


def _compile(run: Run, topology: str, mesh: Mesh, planned: program.Program, batch: int) -> Report:
    start = time.perf_counter()
    traced = planned.function.trace(*planned.arguments)
    lowered = traced.lower()
    trace_s = time.perf_counter() - start
    logger.info("compiling for %s; this takes minutes", topology)
    start = time.perf_counter()
    compiled = lowered.compile()
    return report.report(
        topology,
        chip_of(topology),
        mesh,
        planned,
        compiled,
        batch=batch,
        remat=run.config.dit_model.remat,
        flops=matmul_flops(planned.function, *planned.arguments),
        trace_s=trace_s,
        compile_s=time.perf_counter() - start,
    )
