"""Who plays which role: does the transformer read it, and does the multimodal LLM find it out?

    python benchmarks/roles.py --checkpoint=weights/demo_pretrain

Held-out scenes of two critters whose roles differ, pictures in a random order. The transformer is told the plot by T5
("the second chases the first"), once as it is and once with "the first" and "the second" exchanged, at the same noise:
the table says by how much its error on the subjects rises. The multimodal LLM reads pictures and what happens ("the
bird chases the snail") and says who does what ("second chases the first"): how often is the right answer likelier than
the one with the ordinals exchanged? The AlignerNet, where the checkpoint has one (a run of configs/demo.py), reads a
prompt: how often is it nearer to T5's features of the caption than to those of the caption with the ordinals exchanged?
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from subject_errors import Pair, batches, load, rise, subject_errors

from cinema_jax.cinema import Cinema
from cinema_jax.data.critters import Critters, grammar
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.identity import log_likelihood

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "weights/demo_pretrain", "A run, or a folder of weights with its config."
)
SCENES = flags.DEFINE_integer("scenes", 96, "Held-out scenes.", lower_bound=8)
TIMES = (0.75, 0.85, 0.95)
ACTIONS = ("chase", "jump over", "hide behind", "walk around")


@dataclasses.dataclass(frozen=True)
class Example:
    """One scene: plots, captions and, for each style of names, answers; each right, and exchanged."""

    plots: Pair
    conditions: dict[str, np.ndarray]
    captions: tuple[np.ndarray, np.ndarray]
    answers: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]
    # Whether the prompt names nobody; whether the pictures are in the order of the roles.
    vague: bool
    ordered: bool


def exchanged(text: str) -> str:
    """With "first" and "second" exchanged."""
    return text.replace("first", "@").replace("second", "first").replace("@", "second")


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
        pictures = [picture.image for picture in told.references]
        keys = [actor.subject.key for actor in scene.actors]
        order = [keys.index(picture.subject) for picture in told.references]
        answer = grammar.who_does_what(story, order)
        answers = answer, exchanged(answer)
        conditions = preprocessor.conditions(told.prompt, told.references)
        plots, captions = (told.plot, exchanged(told.plot)), (told.caption, exchanged(told.caption))
        found.append(
            Example(
                Pair(
                    source.video(index),
                    source.boxes(index),
                    tuple(conditions | {"caption_tokens": preprocessor.text(plot)[0]} for plot in plots),
                ),
                conditions,
                tuple(preprocessor.text(caption)[0] for caption in captions),
                {
                    style: tuple(
                        preprocessor.answering(grammar.numbered(story, order, style, ()), pictures, answer)
                        for answer in answers
                    )
                    for style in grammar.STYLES
                },
                not grammar.tells_who(told.prompt, story),
                order == [0, 1],
            )
        )
    return found


def answered_right(cinema: Cinema, params: dict, found: list[Example], style: str) -> np.ndarray:
    """Whether the multimodal LLM gives the right answer the higher likelihood: [scenes]."""

    def likelihoods(part: list[Example], which: int) -> np.ndarray:
        return np.asarray(log_likelihood(cinema, params, collate([one.answers[style][which] for one in part])))

    return np.concatenate([likelihoods(part, 0) > likelihoods(part, 1) for part in batches(found)])


def aligned_right(cinema: Cinema, params: dict, found: list[Example]) -> np.ndarray:
    """Whether the AlignerNet's tokens are nearer to T5's features of the right caption: [scenes]."""

    @jax.jit
    def distances(params, conditions, captions):
        read = cinema.read_prompt(params, conditions)
        return [jnp.sum((read - cinema.encode_caption(params, caption)) ** 2, axis=(1, 2)) for caption in captions]

    nearer = []
    for part in batches(found):
        captions = [np.stack([one.captions[which] for one in part]) for which in (0, 1)]
        right, wrong = distances(params, collate([one.conditions for one in part]), captions)
        nearer.append(np.asarray(right < wrong))
    return np.concatenate(nearer)


def main(argv: list[str]) -> None:
    """Print the tables."""
    del argv
    run = Run.load(Path(CHECKPOINT.value))
    names = ("vae", "t5", "mllm", "dit", *(("aligner",) if "align" in run.config.stages else ()))
    cinema, params = load(run, names)
    found = examples(run, SCENES.value)
    print("| flow time | error on subjects | exchanged | rises by | scenes in which it rises |\n|---|---|---|---|---|")
    errors = subject_errors(cinema, params, TIMES)([one.plots for one in found])
    for time, (true, other) in zip(TIMES, errors, strict=True):
        rises, spread = rise(true, other)
        print(
            f"| {time} | {true.mean():.3f} | {other.mean():.3f} | {rises.mean():+.2f} % +- {spread:.2f} | "
            f"{100 * np.mean(rises > 0):.0f} % |"
        )
    print("\n| names | multimodal LLM: right answer likelier |\n|---|---|")
    for style in grammar.STYLES:
        print(f"| {style} | {100 * answered_right(cinema, params, found, style).mean():.0f} % |")
    if "aligner" not in names:
        return
    right = aligned_right(cinema, params, found)
    vague, ordered = (np.array([getattr(one, name) for one in found]) for name in ("vague", "ordered"))
    kinds = {
        "names nobody": vague,
        "names them in the pictures' order": ~vague & ordered,
        "in another": ~vague & ~ordered,
    }
    print("\n| prompt | scenes | AlignerNet: nearer to the right caption |\n|---|---|---|")
    for kind, here in kinds.items():
        print(f"| {kind} | {here.sum()} | {100 * right[here].mean():.0f} % |")


if __name__ == "__main__":
    app.run(main)
