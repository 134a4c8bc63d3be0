"""How the demo's AlignerNet learns from each start and with each loss: `python benchmarks/align_start.py`.

From the packaged transformer, `align` as in configs/demo.py, but on states and features of fixed examples, which the
frozen networks make once. Prints a table of what is held out, as `train` evaluates it, of the averaged weights.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.aligner.model import alignment_loss
from cinema_jax.models.qwen_vl.model import MLLMInputs
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training import loop, state
from cinema_jax.training.held_out import HeldOut
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.training.stages import STAGES
from cinema_jax.training.step import make_train_step
from configs import demo

# The start of the output norm's scale, and whether caption and padding have half of the loss each.
VARIANTS = {"1, all alike": (False, False), "T5's, all alike": (True, False), "T5's, halves": (True, True)}
SHOWN = ("mse", "cosine_real", "cosine_padding", "flow_ratio", "flow_gate")
BATCH = 32


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=768)
    parser.add_argument("--videos", type=int, default=32, help="held-out videos")
    arguments = parser.parse_args()
    values = demo.get_config()
    values.stages, values.data.validation_videos = ("align",), arguments.videos
    mesh = sharding.make_mesh()
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        trainer = loop.Trainer(Run.open(parse(values), Path(folder)), STAGES["align"], mesh)
        cached, held_out = features(trainer, arguments.examples), trainer.held_out()
        print(f"| start, loss | seed | step | {' | '.join(SHOWN)} |\n|{'---|' * (3 + len(SHOWN))}")
        for seed in range(arguments.seeds):
            for name, (scaled, balanced) in VARIANTS.items():
                train(trainer, held_out, cached, name, seed, scaled, balanced, arguments.steps)


def features(trainer: loop.Trainer, count: int) -> dict[str, np.ndarray]:
    """What the frozen networks make of the first training examples."""
    (examples,), cinema = trainer.examples("train").buckets, trainer.cinema

    @jax.jit
    def read(params: Any, batch: Any) -> Any:
        states = cinema.part(params, "mllm").hidden_states(MLLMInputs.from_batch(batch), -1)
        return states, cinema.encode_caption(params, batch["caption_tokens"])

    found = []
    for start in range(0, count, BATCH):
        batch = collate([examples.align(row, np.random.default_rng(row)) for row in range(start, start + BATCH)])
        states, target = jax.device_get(read(trainer.frozen, batch))
        lengths = {"lengths": batch["lengths"], "caption_lengths": batch["caption_lengths"]}
        found.append({"states": states, "target": target, **lengths})
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def train(
    trainer: loop.Trainer,
    held_out: HeldOut,
    cached: dict[str, np.ndarray],
    name: str,
    seed: int,
    scaled: bool,
    balanced: bool,
    steps: int,
) -> None:
    """One run; prints its lines."""
    cinema, config, rng = trainer.cinema, trainer.config, np.random.default_rng(seed)
    drawn = parts.initialise("aligner", trainer.run.part_config("aligner"), seed)
    initial = {path: drawn[path] for path in trainer.initial}
    if scaled:
        scale = "aligner/output_norm/scale"
        initial[scale] = trainer.initial[scale]

    def loss(params: Any, frozen: Any, batch: Any, keys: Any) -> Any:
        predicted = cinema.part(params, "aligner")(batch["states"], batch["lengths"])
        return alignment_loss(predicted, batch["target"], batch["caption_lengths"], balanced=balanced)

    optimizer = make_optimizer(config.optimizer, steps)
    current = state.create(initial, optimizer, trainer.mesh, seed=seed)
    step = make_train_step(loss, optimizer, current, ema_decay=config.ema_decay)
    order = np.concatenate(
        [rng.permutation(len(cached["lengths"])) for _ in range(1 + steps * BATCH // len(cached["lengths"]))]
    )
    for number in range(steps + 1):
        if number in (0, steps // 4, steps):
            found = held_out.evaluate(current, trainer.frozen)
            told = " | ".join(f"{found[f'eval_{x}']:.4f}" for x in SHOWN)
            print(f"| {name} | {seed} | {number} | {told} |", flush=True)
        if number < steps:
            rows = order[number * BATCH :][:BATCH]
            batch = {name: x[rows] for name, x in cached.items()} | {"index": np.arange(BATCH, dtype=np.int32)}
            current, _ = step(current, {}, batch)


if __name__ == "__main__":
    main()
