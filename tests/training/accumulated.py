"""The gradients of stages, of one batch as a whole and in microbatches, in float64 and in a process of its own:

python accumulated.py FOLDER STAGE... leaves there `<stage>.npz`: of every parameter `<way>/<path>` for each of `WAYS`.
"""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import optax
from tiny import tiny_config

from cinema_jax.cinema import Cinema
from cinema_jax.data.pipeline import Examples
from cinema_jax.devices import sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training import state
from cinema_jax.training.optimizer import Optimizer
from cinema_jax.training.stages import STAGES, make_step

BATCH = 16
# Devices, and parts that the batch is taken in. The first is what the others are compared with.
WAYS = {"whole": (1, 1), "parts": (1, 4), "parts on devices": (8, 2)}
# Its state after one step is the gradient.
KEEPS_GRADIENT = Optimizer(optax.trace(0.0), lambda step: jax.numpy.zeros(()))


def examples(run: Run, stage: str) -> dict[str, np.ndarray]:
    """A batch of a stage, whose texts are of unequal length."""
    latents = np.random.default_rng(1).standard_normal((BATCH, 2, 4, 4, 4), np.float32)
    made = Examples(run.source("train"), run.preprocessor(), range(BATCH), latents)
    rows = [STAGES[stage].example(made, row, np.random.default_rng(row)) for row in range(BATCH)]
    return collate([row | {"index": np.int32(number)} for number, row in enumerate(rows)])


def lowered(run: Run, stage: str, way: str) -> tuple:
    """One step, and what it takes."""
    devices, count = WAYS[way]
    section = dataclasses.replace(run.config.of_stage(stage), microbatches=count, batch_size=BATCH)
    configs, params, _ = run.load_parts(STAGES[stage].needed(run.config), STAGES[stage].afresh(run.config))
    rng = np.random.default_rng(0)
    # Networks start from zeros and ones, at which many gradients are nothing.
    params = {path: np.asarray(x, float) + 0.05 * rng.standard_normal(x.shape) for path, x in params.items()}
    trained, frozen = state.trainable(params, section.trainable)
    cinema = Cinema(dataclasses.replace(run.config, **{stage: section}), configs)
    mesh = sharding.make_mesh(data=1, fsdp=devices, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        start = state.create({path: params[path] for path in trained}, KEEPS_GRADIENT, mesh, seed=0)
        held = sharding.place({path: params[path] for path in frozen}, mesh, WEIGHTS)
        batch = sharding.global_batch(examples(run, stage), mesh, BATCH)
        step = make_step(STAGES[stage], cinema, KEEPS_GRADIENT, start)
        return mesh, step.lower(start, held, batch), (start, held, batch)


def main(folder: Path, stages: list[str]) -> None:
    """All ways of all stages."""
    jax.config.update("jax_enable_x64", True)
    run = Run(dataclasses.replace(tiny_config(), precision="float64"), folder / "run")
    for stage in stages:
        found = {}
        prepared = {way: lowered(run, stage, way) for way in WAYS}
        with ThreadPoolExecutor(2) as pool:
            programs = pool.map(lambda step: step[1].compile(), prepared.values())
            for (way, (mesh, _, arguments)), program in zip(prepared.items(), programs, strict=True):
                with jax.set_mesh(mesh):
                    after, values = program(*arguments)
                found[f"{way}/loss"] = values["loss"]
                found |= {f"{way}/{path}": x for path, x in after.opt_state.trace.items()}
        np.savez(folder / f"{stage}.npz", **jax.device_get(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
