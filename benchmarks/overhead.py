"""What a training step costs outside its compiled program, and what logging it costs:

    python benchmarks/overhead.py

Blocks of steps of the demo's `pretrain` stage at a small batch, in turn: the compiled step alone, the loop around it
without log steps, and the loop with every step logged (JSON lines, TensorBoard, progress bar, goodput). The data is one
batch, over and over: making it is another benchmark's subject. Then the same loop around a step that does nothing,
whose time is all the host's own.
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags

from cinema_jax.commands import command
from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.experiment.run import Run
from cinema_jax.training import state
from cinema_jax.training.loop import Trainer
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.stages import STAGES, make_step
from cinema_jax.training.watch import Supply
from configs import demo

ROUNDS = flags.DEFINE_integer("rounds", 10, "How often each of the three has its turn.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 10, "Steps in a turn.", lower_bound=2)
BATCH = flags.DEFINE_integer("batch", 2, "Samples in a batch.", lower_bound=1)
NEVER = 10**9
# Turns that do not count: the work of a step is counted meanwhile.
WARM_UP = 2
IDLE_TURNS = 30


def trainer(folder: Path) -> Trainer:
    """The demo's pretrain stage, on a few videos."""
    values = demo.get_config()
    values.data.train_videos = values.data.validation_videos = 8
    values.pretrain.batch_size = BATCH.value
    return Trainer(Run.open(parse(values), folder), STAGES["pretrain"], sharding.make_mesh())


class Loops:
    """The three loops over one state."""

    def __init__(self, trainer: Trainer, metrics: MetricsWriter):
        self.trainer, self.metrics = trainer, metrics
        self.current = state.create(trainer.initial, trainer.optimizer, trainer.mesh, seed=0)
        self.step = make_step(trainer.stage, trainer.cinema, trainer.optimizer, self.current)
        self.examples = trainer.training_examples(0)
        _, self.batch = next(trainer.batches(self.examples, 0))

    def bare(self) -> None:
        """The compiled step; the host is never more than a step ahead, as in the loop."""
        before = None
        for _ in range(STEPS.value):
            self.current, values = self.step(self.current, self.trainer.frozen, self.batch)
            jax.block_until_ready(before)
            before = values
        jax.block_until_ready(before)

    def idle(self) -> None:
        """The loop with every step logged, around a step that has long been done."""
        step, (_, values) = self.step, self.step(self.current, self.trainer.frozen, self.batch)
        self.current = state.create(self.trainer.initial, self.trainer.optimizer, self.trainer.mesh, seed=0)
        jax.block_until_ready(values)
        self.step = lambda current, frozen, batch: (current, values)
        times = []
        for _ in range(IDLE_TURNS):
            started = time.perf_counter()
            self.loop(1)
            times.append((time.perf_counter() - started) / STEPS.value)
        print(f"host alone, every step logged, median of the turns: {1e3 * statistics.median(times):.2f} ms a step")
        self.step = step

    def loop(self, log_every: int) -> None:
        """What `Trainer` does with a step."""
        self.trainer.config = dataclasses.replace(self.trainer.config, log_every=log_every)
        start = int(self.current.step)
        supply = Supply(zip(itertools.count(start), itertools.repeat(self.batch, STEPS.value), strict=False))
        with self.trainer._progress(self.current, self.examples, supply, self.metrics) as progress:
            for step, batch in supply:
                self.trainer.profile.before(step + 1, progress.flush)
                with progress.dispatching(batch):
                    self.current, values = self.step(self.current, self.trainer.frozen, batch)
                supply.busy_with = values["skipped"]
                progress.add(step + 1, batch, values, replaced=0)
            progress.flush()


def main(_) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(sharding.make_mesh()):
        made = trainer(Path(folder))
        with MetricsWriter(Path(folder), stage="pretrain") as metrics:
            loops = Loops(made, metrics)
            turns = {
                "compiled step alone": loops.bare,
                "loop without log steps": lambda: loops.loop(NEVER),
                "loop with every step logged": lambda: loops.loop(1),
            }
            times = {name: [] for name in turns}
            for turn in range(ROUNDS.value + WARM_UP):
                for name, run in turns.items():
                    started = time.perf_counter()
                    run()
                    if turn >= WARM_UP:
                        times[name].append((time.perf_counter() - started) / STEPS.value)
            loops.idle()
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = statistics.median(b / a for _, a, b in zip(*times.values(), strict=True))
    print("| | a step |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {1e3 * seconds:.2f} ms |")
    print(f"every step logged / none logged, median of the turns: {ratio:.4f}")


if __name__ == "__main__":
    command.with_huge_pages()
    app.run(main)
