"""How much does the transformer read in the references? Held-out scenes, once with their own pictures, once with
somebody else's.

    python benchmarks/references.py --checkpoint=weights/demo_pretrain

T5 tells the plot ("the second chases the first"), which says nothing of looks: what subjects look like is in their
pictures alone. The table gives the error on the subjects with the right pictures, and by how much it rises, at the same
noise, with those of the next scene with as many subjects. Scenes have as many frames as those the checkpoint was
trained on; compare checkpoints of equal data.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cinema_jax.cinema import Cinema
from cinema_jax.data.critters import Critters
from cinema_jax.data.pipeline import covered
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.run import Run
from cinema_jax.training.stages import flow_errors

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "weights/demo_pretrain", "A run, or a folder of weights with its config."
)
SCENES = flags.DEFINE_integer("scenes", 96, "Held-out scenes of each number of subjects.", lower_bound=8)
TIMES = (0.5, 0.7, 0.85, 0.95)
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Example:
    """One scene: conditions with its own pictures, and with another scene's."""

    video: np.ndarray
    boxes: np.ndarray
    conditions: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def examples(run: Run, subjects: int, count: int) -> list[Example]:
    """The first `count` scenes of the validation split with so many subjects."""
    data, preprocessor = run.config.data, run.preprocessor()
    source = Critters("validation", seed=7, frames=data.frames, height=data.height, width=data.width)
    scenes = [i for i in range(len(source)) if len(source.scene(i).actors) == subjects][:count]
    told = [source.conditions(i, np.random.default_rng(i)) for i in scenes]
    return [
        Example(
            source.video(index),
            source.boxes(index),
            tuple(
                preprocessor.conditions(own.prompt, pictures) | {"caption_tokens": preprocessor.text(own.plot)[0]}
                for pictures in (own.references, other.references)
            ),
        )
        for index, own, other in zip(scenes, told, told[1:] + told[:1], strict=True)
    ]


def errors(cinema: Cinema, params: dict, found: list[Example]) -> np.ndarray:
    """The errors on the subjects at each of TIMES, with the right and with wrong pictures: [times, 2, scenes]."""
    encode = jax.jit(cinema.encode_video)

    @jax.jit
    def at(params, latents, batch, weights, key, time):
        told = cinema.pretrain_conditions(params, batch)
        noise, times = jax.random.normal(key, latents.shape), jnp.full(latents.shape[0], time)
        return flow_errors(cinema, params, latents, noise, times, told, weights)

    result = np.zeros((len(TIMES), 2, len(found)))
    for start in range(0, len(found), BATCH):
        part = found[start : start + BATCH]
        latents = encode(params, np.stack([one.video for one in part]))
        weights = np.stack([covered(one.boxes, latents.shape[1:4]) for one in part])
        for i, time in enumerate(TIMES):
            for which in (0, 1):
                batch, key = collate([one.conditions[which] for one in part]), jax.random.key(1000 * i + start)
                result[i, which, start : start + len(part)] = at(params, latents, batch, weights, key, time)
    return result


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    run = Run.load(Path(CHECKPOINT.value))
    configs, params, _ = run.load_parts(("vae", "t5", "mllm", "dit"))
    params = {path: jnp.asarray(np.asarray(x)) for path, x in params.items()}
    # T5's text with references beside it, as in pretraining, however the checkpoint was trained last.
    config = dataclasses.replace(run.config, pretrain=dataclasses.replace(run.config.pretrain, references=1.0))
    cinema = Cinema(config, configs)
    print("| subjects | flow time | error on them | wrong pictures | rises by |\n|---|---|---|---|---|")
    for subjects in (1, 2, 3):
        found = examples(run, subjects, SCENES.value)
        for time, (own, other) in zip(TIMES, errors(cinema, params, found), strict=True):
            rise, spread = 100 * (other - own) / own.mean(), 100 * (other - own).std() / own.mean() / len(found) ** 0.5
            told = f"{own.mean():.3f} | {other.mean():.3f} | {rise.mean():+.1f} % +- {spread:.1f}"
            print(f"| {subjects} | {time} | {told} |", flush=True)


if __name__ == "__main__":
    app.run(main)
