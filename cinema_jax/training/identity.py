"""Does a generated video show the subject of its reference? The closing measurement of the finetune stage.

One subject that was never trained on, a prompt that does not say what it looks like ("someone jumps up"), one video.
The judge is the frozen MLLM: a video is nearer to the subject whose description it gives the higher likelihood. It
never saw the generator; what it makes of *real* videos of the same subjects is reported beside, as the ceiling.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from cinema_jax.cinema import Batch, Cinema, Params
from cinema_jax.data.critters.background import PLACES
from cinema_jax.data.critters.grammar import QUESTIONS, SENTENCES, naming
from cinema_jax.data.critters.identity import Identity
from cinema_jax.data.critters.source import Critters, reference
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.devices import distributed, watchdog
from cinema_jax.experiment.run import Run
from cinema_jax.models.numerics import at_least_fp32, token_log_likelihood
from cinema_jax.models.qwen_vl.config import MLLMInputs
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import Sampler
from cinema_jax.training.samples import generate

logger = logging.getLogger(__name__)

# (images, a description of each) -> the likelihood of each.
Judge = Callable[[list[np.ndarray], list[str]], Float[np.ndarray, " B"]]

# Videos judged at once, and other subjects that each video is compared with.
BATCH, SWAPS = 16, 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One held-out subject, what is asked of it, and a real video of it."""

    subject: Identity
    request: Request
    real: UInt8[np.ndarray, "frames height width 3"]


def measure(run: Run, sampler: Sampler) -> dict[str, float]:
    """The share of comparisons in which a video is nearer to its own reference than to a swapped one (chance 0.5)."""
    if not run.draws_critters:
        logger.info("identity is measured on drawn critters only: other data has no description of each subject")
        return {}
    cases = held_out_cases(run.source("test"), run.config.evaluate_identities, run.config.seed)
    generated = generate(sampler, [case.request for case in cases], "identity")
    subjects = [case.subject for case in cases]
    # The judge reads, whoever reads the prompts.
    preprocessor = dataclasses.replace(sampler.preprocessor, processor=run.processor())
    judge = functools.partial(_likelihood, sampler, preprocessor)
    scores = {
        "identity_generated": nearer_to_own(judge, generated, subjects),
        "identity_real": nearer_to_own(judge, [case.real for case in cases], subjects),
    }
    logger.info(
        "identity, on %d subjects never trained on: a generated video is nearer to its own reference than to a "
        "swapped one in %.1f %% of comparisons (chance 50; real videos %.1f)",
        len(cases),
        100 * scores["identity_generated"],
        100 * scores["identity_real"],
    )
    return scores


def held_out_cases(source: Critters, count: int, seed: int) -> list[Case]:
    """The first `count` scenes of one subject, each with a prompt that tells nothing of its looks."""
    cases = []
    for index in range(len(source)):
        scene = source.scene(index)
        if len(scene.actors) == 1 and len(cases) < count:
            subject, story = scene.actors[0].subject, scene.story()
            vague = SENTENCES[story.action].vague[0].format(side=story.side, thing=PLACES[story.place].thing)
            picture = reference(subject, np.random.default_rng([seed, index]))
            request = Request(f"{vague} {PLACES[story.place].words}", (picture,), seed=index)
            cases.append(Case(subject, request, source.video(index)))
    return cases


def nearer_to_own(judge: Judge, videos: list[np.ndarray], subjects: list[Identity]) -> float:
    """The share of (video, other subject) pairs in which the own description is the likelier one."""
    count, wins = len(videos), []
    swaps = min(SWAPS, count - 1)
    for start in tqdm(range(0, count, BATCH), desc="judge", unit="batch"):
        watchdog.begin("the judgement of identity")
        rows = [i % count for i in range(start, start + BATCH)]
        told = [[subjects[(row + shift) % count].describe() for row in rows] for shift in range(swaps + 1)]
        likelihoods = [
            np.mean([judge([videos[row][at] for row in rows], texts) for at in _shown(videos[0])], axis=0)
            for texts in told
        ]
        for i in range(min(BATCH, count - start)):
            for other, text in zip(likelihoods[1:], told[1:], strict=True):
                if text[i] != told[0][i]:
                    wins.append(likelihoods[0][i] > other[i])
    return float(np.mean(wins))


def _shown(video: np.ndarray) -> list[int]:
    """Frames that are judged: a subject may still be outside the first, or outside the last."""
    return [len(video) // 3, 2 * len(video) // 3]


def _likelihood(
    sampler: Sampler, preprocessor: Preprocessor, images: list[np.ndarray], descriptions: list[str]
) -> Float[np.ndarray, " B"]:
    """The log-likelihood of each description, given its image."""
    examples = [
        preprocessor.answering(QUESTIONS[0], [image], naming([text]))
        for image, text in zip(images, descriptions, strict=True)
    ]
    return distributed.fetch(log_likelihood(sampler.cinema, sampler.params, collate(examples)))


@functools.partial(jax.jit, static_argnums=0)
def log_likelihood(cinema: Cinema, params: Params, batch: Batch) -> Float[Array, "B"]:
    """The log-likelihood of the answers in a batch of `Preprocessor.answering`, each given what it answers."""
    inputs = MLLMInputs.from_batch(batch)
    logits = at_least_fp32(cinema.part(params, "mllm").logits(inputs)[:, :-1])
    likelihood = token_log_likelihood(logits, inputs.tokens[:, 1:])
    return jnp.sum(likelihood * batch["loss_mask"][:, 1:], axis=1)
