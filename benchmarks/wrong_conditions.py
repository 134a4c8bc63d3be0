"""What wrong conditions cost a finished model: `python benchmarks/wrong_conditions.py [--init=RUN]`.

The ratios that a `finetune` of the demo's videos from these weights would report at step 0.
"""

import argparse
import tempfile
from pathlib import Path

import jax

from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.experiment.run import Run
from cinema_jax.training import state
from cinema_jax.training.held_out import KINDS
from cinema_jax.training.loop import Trainer
from cinema_jax.training.stages import STAGES
from cinema_jax.training.stages.flow import HELD_OUT_TIMES
from configs import demo


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", default="packaged", help="a finished run of the demo")
    arguments = parser.parse_args()
    values = demo.get_config("full")
    values.stages, values.init = ("finetune",), arguments.init
    with tempfile.TemporaryDirectory() as folder:
        run, mesh = Run.open(parse(values), Path(folder)), sharding.make_mesh()
        with jax.set_mesh(mesh):
            trainer = Trainer(run, STAGES["finetune"], mesh)
            current = state.create(trainer.initial, trainer.optimizer, mesh, seed=trainer.seed)
            found = trainer.held_out().evaluate(current, trainer.frozen)
    print(f"eval_loss {found['eval_loss']:.4f}")
    print(f"| told | {' | '.join(map(str, HELD_OUT_TIMES))} | `ratio/...` |\n|{'---|' * (2 + len(HELD_OUT_TIMES))}")
    for kind in KINDS[1:]:
        each = [f"{found[f'ratio/{kind}_t{i}']:.2f}" for i in range(len(HELD_OUT_TIMES))]
        print(f"| {kind} | {' | '.join(each)} | {found[f'ratio/{kind}']:.2f} |")


if __name__ == "__main__":
    main()
