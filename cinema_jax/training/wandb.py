"""`--wandb=PROJECT`: the run's scalars in Weights & Biases too, where it is installed."""

import importlib
import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cinema_jax.errors import InputError


def check_installed() -> None:
    """Raises `InputError` where wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb needs the package wandb, which is not installed: pip install wandb, or leave it out")


class WandB:
    """A sink for `MetricsWriter`: `<stage>/<name>` over the stage's own steps.

    wandb hands the values to a process of its own, which sends them: `log` waits for no network.

    Args:
        project: of wandb.
        workdir: the run's folder; a run that goes on there goes on in wandb. wandb's own files lie there, too.
        config: what is shown as the run's configuration.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        wandb = importlib.import_module("wandb")
        file = workdir / "wandb_id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            dir=str(workdir),
            name=workdir.name,
            id=file.read_text(),
            resume="allow",
            config=dict(config),
        )
        self._stages: set[str] = set()

    def __call__(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            # Stages count from 0 each, and a run that goes on repeats steps: wandb's own counter must not care.
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
