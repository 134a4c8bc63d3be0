"""The stage `mllm`: the multimodal LLM learns to describe pictures of drawn subjects."""

import logging

import numpy as np
from tqdm import tqdm

from cinema_jax.cinema import Cinema, Params
from cinema_jax.data.critters.describing import attribute_accuracy
from cinema_jax.data.critters.grammar import QUESTIONS
from cinema_jax.data.critters.source import reference
from cinema_jax.data.pipeline import Examples
from cinema_jax.experiment.run import Run
from cinema_jax.models.numerics import at_least_fp32, token_log_likelihood
from cinema_jax.models.qwen_vl.config import MLLMInputs
from cinema_jax.models.qwen_vl.decoding import decode
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.reports import SHOWN
from cinema_jax.training.stages.base import Loss, Stage, per_token

logger = logging.getLogger(__name__)


def mllm_loss(cinema: Cinema) -> Loss:
    """Next-token cross entropy on the answer's tokens."""

    def loss(params, batch, keys):
        inputs = MLLMInputs.from_batch(batch)
        logits = at_least_fp32(cinema.part(params, "mllm").logits(inputs)[:, :-1])
        targets, mask = batch["tokens"][:, 1:], batch["loss_mask"][:, 1:].astype(logits.dtype)
        log_likelihood = token_log_likelihood(logits, targets)
        correct = (logits.argmax(-1) == targets).astype(logits.dtype)
        return per_token(-log_likelihood, mask), {"token_accuracy": per_token(correct, mask)}

    return loss


def describe_held_out(run: Run, cinema: Cinema, params: Params) -> dict[str, float]:
    """How many attributes of held-out critters the MLLM names right, from one picture each."""
    if not run.draws_critters:
        return {}
    source = run.source("test")
    processor = run.preprocessor().processor
    tokenizer, asked = processor.tokenizer, run.config.evaluate_identities
    described, total = [], {}
    for start in tqdm(range(0, asked, 32), desc="describe", unit="batch"):
        subjects, examples = [], []
        for index in range(start, min(start + 32, asked)):
            subject = source.scene(index).actors[0].subject
            picture = reference(subject, np.random.default_rng([run.config.seed, index]))
            subjects.append(subject)
            examples.append(processor(QUESTIONS[0], [picture.image]))
        inputs = MLLMInputs.from_batch(collate(examples))
        model = cinema.part(params, "mllm")
        answers = decode(model, inputs, stop=[tokenizer.eos_token_id], max_new_tokens=20)
        for subject, tokens, length in zip(subjects, answers.tokens, answers.lengths, strict=True):
            text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
            described.append((subject.describe(), text))
            for name, right in attribute_accuracy(subject, text).items():
                total.setdefault(name, []).append(right)
    for truth, text in described[:SHOWN]:
        logger.info("a %s: %s", truth, text)
    scores = {f"named_{name}": float(np.mean(right)) for name, right in total.items()}
    main = ("species", "color", "accent", "pattern")
    return scores | {"named_attributes": float(np.mean([scores[f"named_{name}"] for name in main]))}


MLLM = Stage(
    "mllm",
    parts=("mllm",),
    teaches=("mllm",),
    loss=mllm_loss,
    evaluate=mllm_loss,
    example=Examples.mllm,
    image_example=Examples.mllm_image,
    report=lambda run, cinema, params, metrics: describe_held_out(run, cinema, params),
)
