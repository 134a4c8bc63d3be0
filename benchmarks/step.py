"""How much of a training step is matrix products, and where the rest of its time goes:

    python benchmarks/step.py --stage=finetune [--config=configs/demo.py] [--profile]

Counts the floating-point operations of all matrix products and convolutions in one step, measures the rate at which
this machine multiplies large matrices, and compares the time that the products would take at that rate with the time of
the whole step. With `--profile`, what its operations spend their time on, as XLA's profiler sees them.
"""

import collections
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags
from timing import seconds

from cinema_jax.commands import command
from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.devices.flops import matmul_flops
from cinema_jax.experiment.run import Run
from cinema_jax.training import state
from cinema_jax.training.loop import Trainer
from cinema_jax.training.stages import STAGES, make_step

CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "An experiment.")
STAGE = flags.DEFINE_multi_enum("stage", ["pretrain", "align", "finetune"], list(STAGES), "What is measured.")
STEPS = flags.DEFINE_integer("steps", 15, "Steps that are measured; the median counts.", lower_bound=1)
PROFILE = flags.DEFINE_bool("profile", False, "Print what the time goes to.")
MATRIX = 2048
WARM_UP = 2
# The first that applies names a fused operation.
KINDS = {
    "matrix products": {"dot", "convolution"},
    "sums and maxima (norms, softmax, losses, gradients of biases)": {"reduce"},
    "copies and transposes": {"copy", "transpose", "concatenate", "dynamic-slice", "dynamic-update-slice", "slice"},
}


def large_product() -> Callable[[], jax.Array]:
    """What the machine multiplies fastest: two large fp32 matrices."""
    a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, a)


def kinds(program: str) -> dict[str, str]:
    """What each operation of a compiled program does: its own name, or what its fused computation contains."""
    found, inside, contents = {}, "", collections.defaultdict(set)
    for line in program.splitlines():
        if begin := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            inside = begin[1]
        elif operation := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (?:\([^=]*\)|\S+) ([\w-]+)\(", line):
            called = re.search(r"calls=%?([\w.-]+)", line)
            contents[inside].add(operation[2])
            found[operation[1]] = (operation[2], called and called[1])
    return {name: kind(opcode, contents[called] if called else set()) for name, (opcode, called) in found.items()}


def kind(opcode: str, contents: set[str]) -> str:
    """One word for an operation and what is fused into it."""
    if opcode in ("while", "call", "conditional"):
        return ""  # the operations inside are counted
    for name, opcodes in KINDS.items():
        if (contents | {opcode}) & opcodes:
            return name
    return "element by element"


def operations(folder: Path, program: str) -> collections.Counter[str]:
    """Nanoseconds of each kind of operation in a profile, over all threads."""
    kind_of, spent = kinds(program), collections.Counter()
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if (what := kind_of.get(event.name)) and any(name == "hlo_op" for name, _ in event.stats):
                    spent[what] += event.duration_ns
    return spent


def measure(name: str) -> None:
    """Print one stage's line, and its profile if asked for."""
    values = CONFIG.value
    values.data.train_videos = values[name].batch_size
    values.data.validation_videos = 8
    mesh, product = sharding.make_mesh(), large_product()
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        trainer = Trainer(Run.open(parse(values), Path(folder)), STAGES[name], mesh)
        current = state.create(trainer.initial, trainer.optimizer, mesh, seed=0)
        step = make_step(trainer.stage, trainer.cinema, trainer.optimizer, current)
        _, batch = next(trainer.batches(trainer.training_examples(0), 0))
        flops = matmul_flops(step, current, trainer.frozen, batch)

        def advance():
            nonlocal current
            current, metrics = step(current, trainer.frozen, batch)
            return metrics

        # In turn, because the speed of a machine with neighbours changes from second to second.
        times = [(seconds(advance), seconds(product)) for _ in range(STEPS.value + WARM_UP)][WARM_UP:]
        step_time, rate = (statistics.median(column) for column in zip(*times, strict=True))
        rate = 2 * MATRIX**3 / rate
        ideal = flops / rate
        print(
            f"| {name} | {flops / 1e9:.0f} | {rate / 1e9:.0f} | {ideal:.3f} s | {step_time:.3f} s |"
            f" {ideal / step_time:.0%} |",
            flush=True,
        )
        if PROFILE.value:
            with jax.profiler.trace(folder):
                jax.block_until_ready(advance())
            program = step.lower(current, trainer.frozen, batch).compile().as_text()
            spent = operations(Path(folder), program)
            for what, nanoseconds in spent.most_common():
                print(f"    {nanoseconds / spent.total():4.0%} {what}")


def main(_) -> None:
    """Print the table."""
    print("| stage | GFLOP of products | GFLOP/s of large ones | products at that rate | measured | share |")
    print("|---|---|---|---|---|---|")
    for name in STAGE.value:
        measure(name)


if __name__ == "__main__":
    command.with_huge_pages()
    app.run(main)
