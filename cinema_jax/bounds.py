"""Between which bounds each number of a config must lie. Those that depend on other fields are in `config.py`."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from cinema_jax.errors import InputError


class Bound(NamedTuple):
    """What is accepted; NaN never is."""

    holds: Callable[[float], bool]
    words: str


ONE_OR_MORE = Bound(lambda x: x >= 1, "at least 1")
NONE_OR_MORE = Bound(lambda x: x >= 0, "0 or more")
POSITIVE = Bound(lambda x: 0 < x < math.inf, "above 0 and finite")
WEIGHT = Bound(lambda x: 0 <= x < math.inf, "0 or more and finite")
FINITE = Bound(math.isfinite, "a finite number")
PROBABILITY = Bound(lambda x: 0 <= x < 1, "0 or more and below 1")
SHARE = Bound(lambda x: 0 <= x <= 1, "from 0 to 1")

BOUNDS = {
    "evaluate_identities": ONE_OR_MORE,
    "data.fps": POSITIVE,
    "data.max_references": NONE_OR_MORE,
    "data.train_videos": NONE_OR_MORE,
    "data.validation_videos": NONE_OR_MORE,
    "data.keep_background": SHARE,
    "data.other_view": SHARE,
    "data.workers": NONE_OR_MORE,
    "data.threads": NONE_OR_MORE,
    "condition.text_tokens": ONE_OR_MORE,
    **{f"condition.{name}_dropout": PROBABILITY for name in ("text", "reference", "joint")},
    "condition.mllm_tokens": ONE_OR_MORE,
    "condition.answer_tokens": NONE_OR_MORE,
    "condition.mllm_patches": ONE_OR_MORE,
    "flow.time_mean": FINITE,
    "flow.time_std": POSITIVE,
    "flow.shift": POSITIVE,
    "flow.sample_steps": ONE_OR_MORE,
    "flow.guidance_text": FINITE,
    "flow.guidance_reference": FINITE,
    "vae.kl_weight": WEIGHT,
    "vae.importance": WEIGHT,
    "align.mse_weight": WEIGHT,
    "align.cosine_weight": WEIGHT,
    "finetune.captions": SHARE,
}
# Of every stage.
STAGE_BOUNDS = {
    "eval_every": NONE_OR_MORE,
    "sample_every": NONE_OR_MORE,
    "ema_decay": SHARE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.weight_decay": WEIGHT,
}


def check_bounds(config: Any, stages: tuple[str, ...]) -> None:
    """Raises `InputError`, which names the field, its value and what is accepted, where a number lies outside."""
    fields = BOUNDS | {f"{stage}.{name}": bound for stage in stages for name, bound in STAGE_BOUNDS.items()}
    for field, bound in fields.items():
        value = functools.reduce(getattr, field.split("."), config)
        if not bound.holds(value):
            raise InputError(f"config.{field} is {value}; it must be {bound.words}")
