"""How much does the transformer read in the references? Held-out scenes, once with their own pictures, once with
somebody else's.

    python benchmarks/references.py --checkpoint=weights/demo_pretrain

T5 tells the plot ("the second chases the first"), which says nothing of looks: what subjects look like is in their
pictures alone. The table gives the error on the subjects with the right pictures, and by how much it rises, at the same
noise, with those of the next scene with as many subjects. Scenes have as many frames as those the checkpoint was
trained on; compare checkpoints of equal data.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from subject_errors import Pair, load, rise, subject_errors

from cinema_jax.data.critters import Critters
from cinema_jax.experiment.run import Run

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "weights/demo_pretrain", "A run, or a folder of weights with its config."
)
SCENES = flags.DEFINE_integer("scenes", 96, "Held-out scenes of each number of subjects.", lower_bound=8)
TIMES = (0.5, 0.7, 0.85, 0.95)


def pairs(run: Run, subjects: int, count: int) -> list[Pair]:
    """The first `count` scenes of the validation split with so many subjects, with their own pictures and others'."""
    data, preprocessor = run.config.data, run.preprocessor()
    source = Critters("validation", seed=7, frames=data.frames, height=data.height, width=data.width)
    scenes = [i for i in range(len(source)) if len(source.scene(i).actors) == subjects][:count]
    told = [source.conditions(i, np.random.default_rng(i)) for i in scenes]
    return [
        Pair(
            source.video(index),
            source.boxes(index),
            tuple(
                preprocessor.conditions(own.prompt, pictures) | {"caption_tokens": preprocessor.text(own.plot)[0]}
                for pictures in (own.references, other.references)
            ),
        )
        for index, own, other in zip(scenes, told, told[1:] + told[:1], strict=True)
    ]


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    run = Run.load(Path(CHECKPOINT.value))
    cinema, params = load(run, ("vae", "t5", "mllm", "dit"))
    errors = subject_errors(cinema, params, TIMES)
    print("| subjects | flow time | error on them | wrong pictures | rises by |\n|---|---|---|---|---|")
    for subjects in (1, 2, 3):
        found = errors(pairs(run, subjects, SCENES.value))
        for time, (own, other) in zip(TIMES, found, strict=True):
            rises, spread = rise(own, other)
            told = f"{own.mean():.3f} | {other.mean():.3f} | {rises.mean():+.1f} % +- {spread:.1f}"
            print(f"| {subjects} | {time} | {told} |", flush=True)


if __name__ == "__main__":
    app.run(main)
