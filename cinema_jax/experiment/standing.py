"""Which weights a run stands for: one answer for all that samples, measures, starts from or exports a checkpoint.

They are the average of the last stage that has come to something: what a finished stage left in `parts/`, or the newest
checkpoint of one that is under way, over what that stage started from. Never what `config.init` alone holds.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from etils import epath

from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.checkpoint import complete_steps, is_complete, newest_params
from cinema_jax.experiment.pipelines import is_pipeline
from cinema_jax.experiment.run import Run
from cinema_jax.weights.rules import Array

# The average of what was trained, or its last values.
Weights = Literal["ema", "params"]
_WORDS = {"ema": "average", "params": "last values, not the average"}


@dataclasses.dataclass(frozen=True)
class Standing:
    """The weights that a run stands for."""

    run: Run
    weights: Weights = "ema"
    # The last stage that has come to something, and the steps it has done; None: nothing is on record, as in an import.
    stage: str | None = None
    step: int | None = None
    # Where the weights are a checkpoint's: its folder, and what was trained, not read yet.
    checkpoint: epath.Path | None = None
    trained: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """One line for people: stage, step, average or not, and what the run itself has not trained yet."""
        if self.stage is None:
            kind = "a pipeline of diffusers" if is_pipeline(self.run.workdir) else "no training here is on record"
            return f"as they lie in it ({kind})"
        steps = self.run.config.of_stage(self.stage).steps
        done = f"finished after {self.step} steps" if self.checkpoint is None else f"step {self.step} of {steps}"
        if self.checkpoint is not None and self.run.finished(self.stage) is None:
            done += " (not finished)"
        clauses = [f"{self.stage}, {done}, {_WORDS[self.weights]}"]
        if later := self.run.config.stages[self.run.config.stages.index(self.stage) + 1 :]:
            clauses.append(f"{' and '.join(later)} {'has' if len(later) == 1 else 'have'} no checkpoint")
            clauses += [f"{name} is that of {where}" for name, where in self._elsewhere(later).items()]
        return "; ".join(clauses)

    def _elsewhere(self, stages: Iterable[str]) -> dict[str, Path]:
        """The parts that these stages will train and of which the run has nothing of its own."""
        patterns = [pattern for stage in stages for pattern in self.run.config.of_stage(stage).trainable]
        meant = [name for name in parts.KINDS if any(pattern.startswith(name) for pattern in patterns)]
        found = {name: self.run.folder(name) for name in meant if name not in self.begun}
        return {name: where for name, where in found.items() if where and self.run.workdir not in where.parents}

    @property
    def begun(self) -> set[str]:
        """The parts of which the checkpoint has at least some."""
        return {path.split("/")[0] for path in self.trained}

    def has(self, part: str) -> bool:
        """Whether there are weights of a part, the run's own or others."""
        return part in self.begun or self.run.folder(part) is not None

    def arrays(self, part: str) -> dict[str, Array]:
        """A part's weights, in their own types, read when somebody asks for them.

        Raises:
            InputError: some of them are nowhere yet.
        """
        folder, config = self.run.folder(part), self.run.part_config(part)
        found = dict(parts.read(part, config, folder)) if folder else {}
        found |= {path: x for path, x in self.trained.items() if path.startswith(f"{part}/")}
        if missing := sorted(set(parts.structure(part, config)[1]) - set(found)):
            raise InputError(f"{self.run.workdir} holds no {missing[0]} and {len(missing) - 1} more of {part} yet")
        return found

    def params(self, part: str) -> dict[str, Array]:
        """The same in fp32."""
        return {path: x.astype(np.float32) for path, x in self.arrays(part).items()}

    def origin(self, part: str) -> Path | None:
        """Where a part's weights lie, or most of them; None: nowhere."""
        return Path(self.checkpoint) if self.checkpoint and part in self.begun else self.run.folder(part)

    def check_there(self) -> None:
        """To be called when all has been read.

        Raises:
            InputError: the run, which goes on, has removed the checkpoint meanwhile.
        """
        if self.checkpoint is not None and not is_complete(self.checkpoint):
            raise Gone(
                f"{self.checkpoint} was removed while it was read, as the training goes on: try again, or keep more of "
                f"them (config.{self.stage}.keep)"
            )


class Gone(InputError):
    """A checkpoint that its run has removed while it was read; there are newer ones."""


def stands_for(run: Run, weights: Weights = "ema") -> Standing:
    """The weights that a run stands for.

    Args:
        weights: the average of what was trained, or its last values.

    Raises:
        InputError: the run has nothing of its own yet, or no last values any more.
    """
    for stage in reversed(run.config.stages):
        record, folder = run.finished(stage), run.workdir / "checkpoints" / stage
        if record is not None and weights == "ema":
            # It has left its average in parts/.
            _check_written(run)
            return Standing(run, weights, stage, record["steps"])
        if complete_steps(folder):
            # The newest that is whole.
            step, trained = newest_params(folder, ema=weights == "ema")
            return Standing(run, weights, stage, step, epath.Path(folder) / str(step), trained)
        if record is not None:
            raise InputError(f"{run.workdir} has no checkpoint of {stage} any more, and so only the average is there")
    if weights == "params":
        raise InputError(f"{run.workdir} has no checkpoint of a stage, and so no last values: leave --weights out")
    if run.config.stages and not is_pipeline(run.workdir) and not any((run.workdir / "parts").glob("*/config.json")):
        first = run.config.stages[0]
        raise InputError(
            f"{run.workdir} holds nothing that was trained yet: let its training come to its first checkpoint, at step "
            f"{min(run.config.of_stage(first).checkpoint_every, run.config.of_stage(first).steps)} of {first}"
        )
    return Standing(run)


def _check_written(run: Run) -> None:
    """Raises `InputError` where a part is gone that a finished stage has left: another one would take its place."""
    for name, (stage, _) in run.written().items():
        if not (folder := run.workdir / "parts" / name / "config.json").is_file():
            raise InputError(f"{folder.parent} is not there any more, which {stage} had written; put it back")


def unfinished(run: Run) -> str | None:
    """The stage in which the training of a run stands, where it has begun here and is not at its end; else None."""
    if is_pipeline(run.workdir) or not any((run.workdir / name).is_dir() for name in ("checkpoints", "stages")):
        return None
    return next((stage for stage in run.config.stages if run.finished(stage) is None), None)


def refuse_unfinished(run: Run, named: str) -> None:
    """Where a run is a beginning for others: what it stands for today is not what it stands for tomorrow.

    Args:
        named: how the user has named the run, for the message.

    Raises:
        InputError: its training is not at its end.
    """
    if stage := unfinished(run):
        raise InputError(
            f"{named}: {stage} is not finished there, and its weights will change: let that training end, or make a "
            f"checkpoint of what it has with convert export --checkpoint={run.workdir}"
        )


def line(name: str, standing: Standing) -> str:
    """What every command says first of the weights that it uses, for example `weights of runs/demo: ...`."""
    said = "the demo that ships with the project" if name == "packaged" else str(standing)
    return f"weights of {name}: {said}"
