"""The phases of a stage, and whether a mesh can run them: `train` asks before it starts, `plan` before it compiles."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from cinema_jax.config import Config, ImageFirstStageConfig
from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.training.stages import STAGES
from cinema_jax.training.stages.base import Example


class Phase(NamedTuple):
    """Steps whose batches are alike."""

    # Its first step, and the one after its last.
    first: int
    end: int
    # What its examples are called, and what makes one.
    kind: str
    example: Example
    batch_size: int
    # The field that says how large its batches are.
    field: str
    # Most frames of its clips; None: as many as the config says.
    frames: int | None = None

    @property
    def purpose(self) -> str:
        """Keeps its examples' random numbers apart from those of the stage's other phases."""
        return self.kind if self.frames is None else f"{self.kind}, up to {self.frames} frames"


def phases(config: Config, stage: str) -> tuple[Phase, ...]:
    """Those of a stage, in order."""
    section, found, first = config.of_stage(stage), [], 0
    example, image = STAGES[stage].example, STAGES[stage].image_example
    if isinstance(section, ImageFirstStageConfig) and image is not None:
        images, field = min(section.image_steps, section.steps), f"config.{stage}.image_batch_size"
        found.append(Phase(0, images, f"{stage}_image", image, section.image_batch_size, field))
        first = images
    for i, (frames, end, size, _) in enumerate(section.curriculum):
        found.append(Phase(first, end, stage, example, size, f"config.{stage}.curriculum[{i}][2] (batch_size)", frames))
        first = end
    found.append(Phase(first, section.steps, stage, example, section.batch_size, f"config.{stage}.batch_size"))
    return tuple(phase for phase in found if phase.first < phase.end)


def run_in(run: Run, stage: str, phase: Phase) -> Run:
    """The run as one phase of a stage trains it: with that phase's clips, and its batch."""
    if phase.frames is None:
        return run
    section = dataclasses.replace(run.config.of_stage(stage), batch_size=phase.batch_size, curriculum=())
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **{stage: section})).up_to(phase.frames)


def every_run(run: Run, stages: Iterable[str]) -> list[Run]:
    """The run itself, and as it is in those phases of the stages that have other clips; each set of clips once."""
    each = (run_in(run, stage, phase) for stage in stages for phase in phases(run.config, stage))
    return list({one.most_frames: one for one in (run, *each)}.values())


def label(run: Run, stage: str) -> str:
    """What is planned of a stage: its name, with its phase where that has shorter clips."""
    return stage if run.most_frames is None else f"{stage} up to {run.most_frames} frames"


def phase_of(step: int, found: Iterable[Phase]) -> Phase:
    """The one that step `step`, counted from 0, belongs to."""
    return next(phase for phase in found if phase.first <= step < phase.end)


def batch_shapes(examples: Examples, phase: Phase) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a phase's batches, from one example."""
    alone, config = Mixture((examples,)), LoaderConfig(1, num_threads=0, purpose=phase.purpose)
    ((_, one),) = Loader(alone.sizes, functools.partial(alone.make, phase.example), config).steps(0, 1)
    return {name: jax.ShapeDtypeStruct((phase.batch_size, *x.shape[1:]), x.dtype) for name, x in one.items()}


def check_microbatches(config: Config, stages: Iterable[str]) -> None:
    """Whether every batch of the stages divides into its microbatches, on whatever mesh.

    Raises:
        InputError: one does not; names its field.
    """
    for stage in stages:
        parts = config.of_stage(stage).microbatches
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
