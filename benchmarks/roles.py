"""Who plays which role: does the transformer read it, and does the multimodal LLM find it out?

    python benchmarks/roles.py --checkpoint=weights/demo_pretrain

Held-out scenes of two critters whose roles differ, pictures in a random order. The transformer is told the plot by T5
("the second chases the first"), once as it is and once with "the first" and "the second" exchanged, at the same noise:
the table says by how much its error on the subjects rises. The multimodal LLM reads prompt and pictures, and chooses by
likelihood between the caption, descriptions in the order of the roles, and the same with these exchanged.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cinema_jax.cinema import Cinema
from cinema_jax.data.critters import Critters, grammar
from cinema_jax.data.pipeline import covered
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.identity import log_likelihood
from cinema_jax.training.run import Run
from cinema_jax.training.stages import flow_errors

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "weights/demo_pretrain", "A run, or a folder of weights with its config."
)
SCENES = flags.DEFINE_integer("scenes", 96, "Held-out scenes.", lower_bound=8)
TIMES = (0.75, 0.85, 0.95)
ACTIONS = ("chase", "jump over", "hide behind", "walk around")
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Example:
    """One scene: two plots, of which the first is right; and two (captions given prompt and pictures) likewise."""

    video: np.ndarray
    boxes: np.ndarray
    conditions: dict[str, np.ndarray]
    plots: tuple[np.ndarray, np.ndarray]
    answers: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
    # Whether the prompt names nobody; whether the pictures are in the order of the roles.
    vague: bool
    ordered: bool


def exchanged(plot: str) -> str:
    """With "the first" and "the second" exchanged."""
    return plot.replace("the first", "@").replace("the second", "the first").replace("@", "the second")


def examples(run: Run, count: int) -> list[Example]:
    """The first `count` scenes of the validation split whose two roles differ."""
    preprocessor, source = run.preprocessor(), Critters("validation", seed=7)
    found: list[Example] = []
    for index in range(len(source)):
        if len(found) == count:
            break
        scene = source.scene(index)
        if scene.action not in ACTIONS:
            continue
        told, story = source.conditions(index, np.random.default_rng(index)), scene.story()
        other = dataclasses.replace(story, descriptions=story.descriptions[::-1])
        pictures = [picture.image for picture in told.references]
        found.append(
            Example(
                source.video(index),
                source.boxes(index),
                preprocessor.entities(told.references),
                (preprocessor.text(told.plot)[0], preprocessor.text(exchanged(told.plot))[0]),
                tuple(preprocessor.answering(told.prompt, pictures, grammar.caption(it)) for it in (story, other)),
                not grammar.tells_who(told.prompt, story),
                [picture.subject for picture in told.references] == [actor.subject.key for actor in scene.actors],
            )
        )
    return found


def transformer_errors(cinema: Cinema, params: dict, found: list[Example]) -> np.ndarray:
    """The errors on the subjects at each of TIMES: [times, plots, scenes]."""

    encode = jax.jit(cinema.encode_video)

    @jax.jit
    def errors(params, latents, plot, batch, weights, key, time):
        told = cinema.pretrain_conditions(params, {"caption_tokens": plot, **batch})
        noise, times = jax.random.normal(key, latents.shape), jnp.full(latents.shape[0], time)
        return flow_errors(cinema, params, latents, noise, times, told, weights)

    result = np.zeros((len(TIMES), 2, len(found)))
    for start in range(0, len(found), BATCH):
        part = found[start : start + BATCH]
        batch = {name: np.stack([one.conditions[name] for one in part]) for name in part[0].conditions}
        latents = encode(params, np.stack([one.video for one in part]))
        weights = np.stack([covered(one.boxes, latents.shape[1:4]) for one in part])
        for i, time in enumerate(TIMES):
            for which in (0, 1):
                plots, key = np.stack([one.plots[which] for one in part]), jax.random.key(1000 * i + start)
                result[i, which, start : start + BATCH] = errors(params, latents, plots, batch, weights, key, time)
    return result


def answered_right(cinema: Cinema, params: dict, found: list[Example]) -> np.ndarray:
    """Whether the multimodal LLM gives the right caption the higher likelihood: [scenes]."""
    scores = [
        [log_likelihood(cinema, params, collate([one.answers[which] for one in found[start : start + BATCH]]))
         for start in range(0, len(found), BATCH)]
        for which in (0, 1)
    ]  # fmt: skip
    right, wrong = (np.concatenate([np.asarray(x) for x in parts]) for parts in scores)
    return right > wrong


def main(argv: list[str]) -> None:
    """Print both tables."""
    del argv
    run = Run.load(Path(CHECKPOINT.value))
    if not run.config.pretrain.references:
        raise app.UsageError(f"{CHECKPOINT.value}: its transformer was pretrained without references")
    configs, params, _ = run.load_parts(("vae", "t5", "mllm", "dit"))
    params = {path: jnp.asarray(np.asarray(x)) for path, x in params.items()}
    cinema, found = Cinema(run.config, configs), examples(run, SCENES.value)
    print("| flow time | error on subjects | exchanged | rises by | scenes in which it rises |\n|---|---|---|---|---|")
    for time, (true, other) in zip(TIMES, transformer_errors(cinema, params, found), strict=True):
        rise, spread = 100 * (other - true) / true.mean(), 100 * (other - true).std() / true.mean() / len(found) ** 0.5
        print(
            f"| {time} | {true.mean():.3f} | {other.mean():.3f} | {rise.mean():+.2f} % +- {spread:.2f} | "
            f"{100 * np.mean(rise > 0):.0f} % |"
        )
    right = answered_right(cinema, params, found)
    vague, ordered = (np.array([getattr(one, name) for one in found]) for name in ("vague", "ordered"))
    print("\n| prompt | scenes | multimodal LLM chooses the right caption |\n|---|---|---|")
    kinds = {
        "names nobody": vague,
        "names them in the pictures' order": ~vague & ordered,
        "in another": ~vague & ~ordered,
    }
    for kind, here in kinds.items():
        print(f"| {kind} | {here.sum()} | {100 * right[here].mean():.0f} % |")


if __name__ == "__main__":
    app.run(main)
