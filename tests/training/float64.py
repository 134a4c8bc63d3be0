"""What the tests of float64 train: `finetune`, at the smallest sizes that a mesh of eight devices really splits.

python float64.py FOLDER takes its steps on every mesh of `MESHES`, in a process of its own with eight devices. FOLDER
has the frozen parts. Each mesh leaves there `<number>.npz` (losses, parameters, averages), `<number>.json` (the shape
of each parameter, and of a device's share) and `<number>.txt` (the program of one device); the first one also
`closing.npz`, the held-out loss and what is sampled.
"""

import dataclasses
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from tiny import tiny_values

from cinema_jax.cinema import Cinema, Params
from cinema_jax.config import Config, parse
from cinema_jax.devices import distributed, sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.attention import mesh as attention_mesh
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import Sampler
from cinema_jax.training import loop, reports, state
from cinema_jax.training.stages import STAGES, make_step

STEPS, BATCH = 10, 8
# The first one is what the others are compared with.
MESHES = (
    {},
    {"slice": 2, "data": 2, "fsdp": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
    # Four samples at a time, on eight devices.
    {"data": 2, "fsdp": 2, "context": 2, "microbatches": 2},
)


def config(frozen: Path, microbatches: int = 1, **sizes: int) -> Config:
    """The run on a mesh; `frozen` holds the parts that are not trained."""
    values = tiny_values()
    values.precision, values.stages = "float64", ("finetune",)
    values.weights.vae, values.weights.mllm = str(frozen / "vae"), str(frozen / "mllm")
    # With the others an odd number of tokens: over `context` they are filled up.
    values.condition.text_tokens = 15
    values.dit_model.num_layers, values.dit_model.num_attention_heads = 2, 4
    stage = values.finetune
    stage.steps, stage.batch_size, stage.microbatches = STEPS, BATCH, microbatches
    # Clipping and decay are felt.
    stage.optimizer.warmup_steps, stage.optimizer.clip_norm, stage.optimizer.weight_decay = 3, 0.5, 0.1
    values.mesh = dict.fromkeys(values.mesh, 1) | sizes
    return parse(values)


def write_frozen(folder: Path) -> None:
    """Random parts, which `finetune` does not train."""
    run = Run(dataclasses.replace(config(folder), weights=parse(tiny_values()).weights), folder)
    for name in ("vae", "mllm"):
        part, rng = run.part_config(name), np.random.default_rng(0)
        shapes = {path: leaf.shape for path, leaf in parts.structure(name, part)[1].items()}
        random = {path: 0.2 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
        parts.write(name, part, random, folder / name)


def split_what_is_small() -> None:
    """Here all vectors are too small to be split, and all sequences too short to be exchanged over `context`."""
    sharding.SMALL, attention_mesh.EXCHANGE_TOKENS = 1, 32


def sampled(run: Run, cinema: Cinema, params: Params) -> np.ndarray:
    """Latents of two held-out requests after two steps, on the devices that hold `params`; all processes call this."""
    sampler, source = Sampler(cinema, params, run.preprocessor()), run.source("validation")
    told = [reports.held_out_conditions(run, source, index) for index in range(2)]
    requests = [Request(c.prompt, c.references, seed=index) for index, c in enumerate(told)]
    return distributed.fetch(sampler.latents(requests, sampler.settings(steps=2)))


class Steps:
    """The steps on one mesh, lowered."""

    def __init__(self, first: loop.Trainer, batches: list[dict[str, np.ndarray]], sizes: dict[str, int]):
        frozen_parts = Path(first.run.config.weights.vae).parent
        cinema = loop.Cinema(config(frozen_parts, **sizes), first.cinema.part_configs)
        shape = vars(cinema.config.mesh)
        self.mesh = sharding.make_mesh(**shape, devices=jax.devices()[: math.prod(shape.values())])
        with jax.set_mesh(self.mesh):
            self.frozen = sharding.place(jax.device_get(first.frozen), self.mesh, WEIGHTS)
            self.state = state.create(first.initial, first.optimizer, self.mesh, seed=first.seed)
            self.batches = [sharding.global_batch(batch, self.mesh, BATCH) for batch in batches]
            step = make_step(first.stage, cinema, first.optimizer, self.state)
            self.lowered = step.lower(self.state, self.frozen, self.batches[0])

    def run(self, program: jax.stages.Compiled, file: Path) -> state.TrainState:
        """Take the steps, write down what came of them, and return the last state."""
        shapes = {path: (x.shape, x.addressable_shards[0].data.shape) for path, x in self.state.params.items()}
        file.with_suffix(".json").write_text(json.dumps(shapes))
        file.with_suffix(".txt").write_text(program.as_text())
        current, told = self.state, []
        with jax.set_mesh(self.mesh):
            for batch in self.batches:
                current, values = program(current, self.frozen, batch)
                # One at a time: the devices' threads are more than the machine's.
                told.append((float(values["loss"]), float(values["grad_norm"])))
        branches = {"params": current.params, "ema": current.ema}
        arrays = {f"{branch}/{path}": x for branch, leaves in branches.items() for path, x in leaves.items()}
        np.savez(file.with_suffix(".npz"), told=told, **jax.device_get(arrays))
        return current


def main(folder: Path) -> None:
    """All meshes."""
    split_what_is_small()
    jax.config.update("jax_enable_x64", True)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        first = loop.Trainer(Run(config(folder), folder / "one"), STAGES["finetune"], mesh)
        batches = [jax.device_get(batch) for _, batch in first.batches(first.training_examples(0), 0)]
    several = [Steps(first, batches, sizes) for sizes in MESHES]
    (folder / "lowered.txt").write_text(several[0].lowered.as_text())
    with ThreadPoolExecutor(2) as pool:
        programs = pool.map(lambda steps: steps.lowered.compile(), several)
        lasts = [
            steps.run(program, folder / str(number))
            for number, (steps, program) in enumerate(zip(several, programs, strict=True))
        ]
    with jax.set_mesh(mesh):
        closing = first.held_out().evaluate(lasts[0], first.frozen)
        closing["sampled"] = sampled(first.run, first.cinema, {**first.frozen, **lasts[0].ema})
    np.savez(folder / "closing.npz", **closing)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
