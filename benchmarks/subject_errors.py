"""The transformer's error on the subjects of held-out scenes under two conditions, for roles.py and references.py."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cinema_jax.cinema import Cinema
from cinema_jax.data.pipeline import covered
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.stages.flow import flow_errors

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Pair:
    """One scene and two conditions, T5's text as `caption_tokens`."""

    video: np.ndarray
    boxes: np.ndarray
    conditions: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def load(run: Run, parts: Sequence[str]) -> tuple[Cinema, dict]:
    """The model and its weights. T5's text has references beside it, as in pretraining, however the checkpoint was
    trained last."""
    configs, params, _ = run.load_parts(parts)
    params = {path: jnp.asarray(np.asarray(x)) for path, x in params.items()}
    config = dataclasses.replace(run.config, pretrain=dataclasses.replace(run.config.pretrain, references=1.0))
    return Cinema(config, configs), params


def batches(found: Sequence[Any]) -> list[Sequence[Any]]:
    """In their order."""
    return [found[start : start + BATCH] for start in range(0, len(found), BATCH)]


def subject_errors(cinema: Cinema, params: dict, times: Sequence[float]) -> Callable[[list[Pair]], np.ndarray]:
    """What gives pairs' errors on the subjects at each of `times`, both at the same noise: [times, 2, pairs]."""
    encode = jax.jit(cinema.encode_video)

    @jax.jit
    def at(params, latents, batch, weights, key, time):
        told = cinema.pretrain_conditions(params, batch)
        noise = jax.random.normal(key, latents.shape)
        return flow_errors(cinema, params, latents, noise, jnp.full(latents.shape[0], time), told, weights)

    def errors(pairs: list[Pair]) -> np.ndarray:
        result = np.zeros((len(times), 2, len(pairs)))
        for number, part in enumerate(batches(pairs)):
            start = number * BATCH
            latents = encode(params, np.stack([one.video for one in part]))
            weights = np.stack([covered(one.boxes, latents.shape[1:4]) for one in part])
            for which in (0, 1):
                batch = collate([one.conditions[which] for one in part])
                for i, time in enumerate(times):
                    key = jax.random.key(1000 * i + start)
                    result[i, which, start : start + len(part)] = at(params, latents, batch, weights, key, time)
        return result

    return errors


def rise(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """By how many per cent of `own`'s mean each scene's error is higher in `other`, and the mean's standard error."""
    found = 100 * (other - own) / own.mean()
    return found, found.std() / len(found) ** 0.5
