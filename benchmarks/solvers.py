"""How near each solver comes to the flow's own end, by number of steps:

    python benchmarks/solvers.py --checkpoint=runs/demo

Samples the held-out videos of the contact sheet with every solver and number of steps and prints the root mean square
distance of the latents from those of 200 steps of Euler (latents have a standard deviation of about 1).
"""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cinema_jax.diffusion.config import FLOW_SOLVERS
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.training.reports import SHOWN, held_out_conditions

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a finished training run.", required=True)
STEPS = (5, 10, 20, 40)
TRUTH = 200


def main(_) -> None:
    """Print the table."""
    run, sampler = load_sampler(Path(CHECKPOINT.value))
    source = run.source("validation")
    told = [held_out_conditions(run, source, index) for index in range(SHOWN)]
    requests = [Request(c.prompt, c.references, seed=index) for index, c in enumerate(told)]

    def latents(solver: str, spacing: str, steps: int) -> np.ndarray:
        return np.asarray(sampler.latents(requests, sampler.settings(solver=solver, spacing=spacing, steps=steps)))

    truth = latents("euler", "uniform", TRUTH)
    kinds = list(itertools.product(FLOW_SOLVERS, ("uniform", "cosine")))
    print(f"| network evaluations | {' | '.join(map(', '.join, kinds))} |\n|{'---|' * (len(kinds) + 1)}")
    for steps in STEPS:
        distances = [float(jnp.sqrt(jnp.mean((latents(*kind, steps) - truth) ** 2))) for kind in kinds]
        print(f"| {steps} | {' | '.join(f'{distance:.3f}' for distance in distances)} |")


if __name__ == "__main__":
    app.run(main)
