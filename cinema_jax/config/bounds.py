"""Between which bounds each number of a config must lie. Those that depend on other fields are in `checks.py`."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from cinema_jax.errors import InputError

# Of steps, which are counted in 32 bits.
_ENDLESS = 2**31 - 1


class Bound(NamedTuple):
    """What is accepted; NaN never is."""

    holds: Callable[[float | int], bool]
    words: str

    def check(self, field: str, value: float | int) -> None:
        """Raises `InputError`, which names the field, its value and what is accepted, where the number lies outside."""
        if not self.holds(value):
            raise InputError(f"{field} is {value}; it must be {self.words}")


def up_to(most: int, least: int = 1) -> Bound:
    """A size: far more than anybody needs is a slip of the pen, for which no machine has the memory."""
    return Bound(lambda x: least <= x <= most, f"at least {least}" + f" and at most {most}" * (most < _ENDLESS))


FRAMES, PIXELS = up_to(1 << 16), up_to(1 << 14)
ONE_OR_MORE = up_to(_ENDLESS)
NONE_OR_MORE = Bound(lambda x: 0 <= x <= _ENDLESS, "0 or more")
# Tokens of one sequence; processes and threads.
TOKENS, THREADS = up_to(1 << 20), up_to(1 << 12, 0)
POSITIVE = Bound(lambda x: 0 < x < math.inf, "above 0 and finite")
WEIGHT = Bound(lambda x: 0 <= x < math.inf, "0 or more and finite")
FINITE = Bound(math.isfinite, "a finite number")
PROBABILITY = Bound(lambda x: 0 <= x < 1, "0 or more and below 1")
SHARE = Bound(lambda x: 0 <= x <= 1, "from 0 to 1")

BOUNDS = {
    "evaluate_identities": ONE_OR_MORE,
    "data.fps": POSITIVE,
    "data.max_references": up_to(1 << 10, 0),
    "data.train_videos": NONE_OR_MORE,
    "data.validation_videos": NONE_OR_MORE,
    "data.keep_background": SHARE,
    "data.other_view": SHARE,
    "data.workers": THREADS,
    "data.threads": THREADS,
    "condition.text_tokens": TOKENS,
    **{f"condition.{name}_dropout": PROBABILITY for name in ("text", "reference", "joint")},
    "condition.mllm_tokens": TOKENS,
    "condition.answer_tokens": up_to(1 << 20, 0),
    "condition.mllm_patches": TOKENS,
    "flow.time_mean": FINITE,
    "flow.time_std": POSITIVE,
    "flow.shift": POSITIVE,
    "flow.sample_steps": up_to(1 << 16),
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
    **dict.fromkeys(("steps", "log_every", "checkpoint_every", "keep"), ONE_OR_MORE),
    **dict.fromkeys(("batch_size", "microbatches"), up_to(1 << 20)),
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
        bound.check(f"config.{field}", functools.reduce(getattr, field.split("."), config))
