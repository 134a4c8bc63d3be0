"""The phases of a stage, and whether a mesh can run them: `train` asks before it starts, `plan` before it compiles."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from cinema_jax import sharding
from cinema_jax.config import Config, ImageFirstStageConfig
from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.errors import InputError


class Phase(NamedTuple):
    """Steps whose batches are alike."""

    # Its first step, and the one after its last.
    first: int
    end: int
    # What makes its examples: a method of `data.pipeline.Examples`.
    kind: str
    batch_size: int
    # The field that says how large its batches are.
    field: str


def phases(config: Config, stage: str) -> tuple[Phase, ...]:
    """Those of a stage, in order."""
    section = getattr(config, stage)
    images = min(section.image_steps, section.steps) if isinstance(section, ImageFirstStageConfig) else 0
    both = (
        Phase(0, images, f"{stage}_image", getattr(section, "image_batch_size", 0), f"config.{stage}.image_batch_size"),
        Phase(images, section.steps, stage, section.batch_size, f"config.{stage}.batch_size"),
    )
    return tuple(phase for phase in both if phase.first < phase.end)


def phase_of(step: int, found: Iterable[Phase]) -> Phase:
    """The one that step `step`, counted from 0, belongs to."""
    return next(phase for phase in found if phase.first <= step < phase.end)


def batch_shapes(examples: Examples, phase: Phase) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a phase's batches, from one example."""
    alone, config = Mixture((examples,)), LoaderConfig(1, num_threads=0, purpose=phase.kind)
    ((_, one),) = Loader(alone.sizes, functools.partial(alone.make, phase.kind), config).steps(0, 1)
    return {name: jax.ShapeDtypeStruct((phase.batch_size, *x.shape[1:]), x.dtype) for name, x in one.items()}


def check_microbatches(config: Config, stages: Iterable[str]) -> None:
    """Whether every batch of the stages divides into its microbatches, on whatever mesh.

    Raises:
        InputError: one does not; names its field.
    """
    for stage in stages:
        parts = getattr(config, stage).microbatches
        for phase in phases(config, stage):
            if phase.batch_size < 1:
                raise InputError(f"{phase.field} is {phase.batch_size}; it must be at least 1")
            if phase.batch_size % parts:
                raise InputError(
                    f"config.{stage}.microbatches is {parts}; it must divide {phase.field}, {phase.batch_size}"
                )


def check_batches(config: Config, stages: Iterable[str], mesh: Mesh) -> None:
    """The same, and whether each splits over `mesh`; raises like it."""
    stages = list(stages)
    check_microbatches(config, stages)
    for stage in stages:
        for phase in phases(config, stage):
            try:
                sharding.host_rows(mesh, phase.batch_size)
            except InputError as error:
                raise InputError(f"{phase.field}: {error}") from None
