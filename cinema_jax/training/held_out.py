"""What a stage makes of examples that it never trains on, and what it makes of them when they are told wrong things.

A transformer that reads its conditions loses more where they are wrong. So in the flow stages some held-out examples
are also shown the references of another clip, none, and no text, at the same times with the same noise. Their losses
over those with the right conditions are 1 where it does not look.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cinema_jax.cinema import Cinema, Params
from cinema_jax.data.example import Conditions
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.devices import sharding, watchdog
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training import state
from cinema_jax.training.stages.base import Stage
from cinema_jax.training.stages.flow import HELD_OUT_TIMES, noisier
from cinema_jax.training.state import TrainState
from cinema_jax.training.step import mean_of_batches

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]

KINDS = RIGHT, SWAPPED, NO_REFERENCES, NO_TEXT = "right", "swapped_references", "no_references", "no_text"
# Of `HELD_OUT_TIMES`, those at which subjects come to look as they do: the ratio without a time is over these.
_DECISIVE = [i for i, time in enumerate(HELD_OUT_TIMES) if 0.6 <= time <= 0.95]


class HeldOut:
    """The held-out batches of a stage, fixed for the whole run, and their evaluation.

    Every process must make and evaluate them: they are split over the mesh where their size allows.

    Args:
        examples: the held-out ones, neither augmented nor with dropped conditions.
    """

    def __init__(self, stage: Stage, cinema: Cinema, mesh: Mesh, examples: Mixture):
        self._stage, self._mesh, self._seed = stage, mesh, cinema.config.seed
        evaluate = stage.evaluate(cinema)
        self._evaluate = jax.jit(lambda ema, frozen, batch, keys: evaluate({**frozen, **ema}, batch, keys))
        # Those of one bucket after those of the other.
        self.batches: list[Batch] = []
        # Of each bucket, a batch for each thing that its examples can be told; of the shape of the bucket's others.
        self._told: list[dict[str, Batch]] = []
        if stage.told:
            shares = ", ".join(f"{100 * share:.3g}" for share in noisier(cinema.config))
            times = ", ".join(f"{time:g}" for time in HELD_OUT_TIMES)
            logger.info("%s: held-out at flow times %s; of training's, %s %% are noisier", stage.name, times, shares)
        size, before = cinema.config.of_stage(stage.name).batch_size, 0
        for bucket in examples.buckets:
            count = len(bucket.indices)
            if count:
                referred = self._add(bucket, before, min(size, count))
                if stage.told:
                    self._told.append(self._of_told(bucket, before, min(size, count), referred))
            before += count

    def _add(self, examples: Examples, before: int, size: int) -> list[int]:
        """Add a bucket's batches; returns its rows that have references. `before` rows are in the buckets before it."""
        count, referred = len(examples.indices), set()
        for start in range(0, count, size):
            # One shape for all of a bucket: its last batch reaches back.
            first, made = min(start, count - size), {}
            for row in range(first, first + size):
                made[row] = self._stage.example(examples, row, self._rng(before + row))
                if made[row].get("entity_lengths", 0) > 0:
                    referred.add(row)
            self.batches.append(self._batch(made.values(), [before + row for row in made]))
        return sorted(referred)

    def _of_told(self, examples: Examples, before: int, size: int, referred: Sequence[int]) -> dict[str, Batch]:
        """Those with references, if there are any, each told what is right, and what is not."""
        chosen = referred or range(size)
        rows = [chosen[i % len(chosen)] for i in range(size)]
        own = {row: examples.conditions(row, self._rng(before + row)) for row in sorted({*rows, *referred})}
        others = {row: another(examples, row, own) for row in rows}
        kinds = KINDS if referred else (RIGHT, NO_TEXT)
        if None in others.values():
            kinds = tuple(kind for kind in kinds if kind != SWAPPED)
        found = {}
        for kind in kinds:
            told = {row: _told(kind, own[row], own.get(others[row])) for row in rows}
            made = [self._stage.told(examples, row, told[row], shown=kind != NO_REFERENCES) for row in rows]
            found[kind] = self._batch(made, [before + row for row in rows])
        return found

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, number])

    def _batch(self, made: Iterable[Mapping[str, np.ndarray]], numbers: Sequence[int]) -> Batch:
        rows = [dict(one) | {"index": np.int32(number)} for one, number in zip(made, numbers, strict=True)]
        return sharding.whole_batch(collate(rows), self._mesh, len(rows))

    def evaluate(self, current: TrainState, frozen: Params) -> dict[str, float]:
        """Mean metrics of the averaged weights over all batches, and how much worse these do when told wrong things."""
        every = [self._values(batch, current, frozen) for batch in self.batches]
        told = [{kind: self._values(batch, current, frozen) for kind, batch in each.items()} for each in self._told]
        names = every[0] if every else ()
        return {f"eval_{name}": mean_of_batches([x[name] for x in every]) for name in names} | ratios(told)

    def _values(self, batch: Batch, current: TrainState, frozen: Params) -> dict[str, Any]:
        watchdog.begin(f"the evaluation of {self._stage.name}")
        keys = state.sample_keys(current.key, batch["index"])
        loss, values = self._evaluate(current.ema, frozen, batch, keys)
        return jax.device_get({"loss": loss, **values})


def another(examples: Examples, row: int, told: Mapping[int, Conditions]) -> int | None:
    """A row whose references are another clip's: the next one with as many, or with any; None where all are of one.

    Args:
        told: rows to what they are told.
    """
    later = sorted(told, key=lambda other: (other <= row, other))
    found = [i for i in later if told[i].references and examples.group(i) != examples.group(row)]
    alike = [i for i in found if len(told[i].references) == len(told[row].references)]
    return next(iter([*alike, *found]), None)


def _told(kind: str, own: Conditions, other: Conditions | None) -> Conditions:
    """An example's conditions, made wrong in one way; `other` are those of another clip."""
    if kind == SWAPPED:
        return dataclasses.replace(own, references=other.references)
    return dataclasses.replace(own, prompt="", caption="") if kind == NO_TEXT else own


def ratios(told: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """The losses of examples that are told something wrong over those of the same told what is right.

    Args:
        told: of each bucket, by what its examples are told, the losses that `stages.flow_evaluation` gives.

    Returns:
        For each thing that they are told `ratio/<thing>_t<number of the time>`, `ratio/<thing>` over the decisive times
        and `ratio/<thing>_loss`, the loss itself in the mean of the times of `eval_loss`.
    """
    found = {}
    for kind in KINDS[1:]:
        pairs = [(each[kind], each[RIGHT]) for each in told if kind in each]
        if not pairs:
            continue
        # [wrong and right, times]
        sums = np.array([[[float(x[f"loss_t{i}"]) for i in range(len(HELD_OUT_TIMES))] for x in p] for p in pairs])
        wrong, right = sums.sum(axis=0)
        found[f"ratio/{kind}"] = float(wrong[_DECISIVE].sum() / right[_DECISIVE].sum())
        found |= {f"ratio/{kind}_t{i}": float(x) for i, x in enumerate(wrong / right)}
        found[f"ratio/{kind}_loss"] = float(np.mean([pair[0]["loss"] for pair in pairs]))
    return found
