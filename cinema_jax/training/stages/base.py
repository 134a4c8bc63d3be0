"""What a stage of training is: everything that is known of one stands in its file beside this one.

A loss takes `(params, batch, keys)`, where `params` are the trainable and frozen parameters together and `keys` holds
one random key per sample, and returns loss and metrics: means over samples, or where these are of unequal length a
`Share` of two such means.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from cinema_jax.cinema import Batch, Cinema, Params
from cinema_jax.config import Config
from cinema_jax.data.pipeline import Arrays, Examples
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.optimizer import Optimizer
from cinema_jax.training.state import TrainState, trained
from cinema_jax.training.step import Share, TrainStep, make_train_step

Metrics = dict[str, Float[Array, ""] | Share]
Loss = Callable[[Params, Batch, Key[Array, "B"]], tuple[Float[Array, ""] | Share, Metrics]]
# Makes one example of a source's row.
Example = Callable[[Examples, int, np.random.Generator], Arrays]


def nothing_to_report(run: Run, cinema: Cinema, params: Params, metrics: MetricsWriter) -> dict[str, float]:
    """Of a stage whose held-out evaluation says all."""
    return {}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training. Its section of the config has its name; one that depends on more overrides a method."""

    name: str
    # The parts its step and its report use, where the MLLM reads prompts.
    parts: tuple[str, ...]
    # Those of them that its loss can teach. Not the VAE whose latents a stage is given: it made them as it was.
    teaches: tuple[str, ...]
    # Builds the training loss, and the held-out one.
    loss: Callable[[Cinema], Loss]
    evaluate: Callable[[Cinema], Loss]
    # A function of a module without jax: data workers, which are many, import it.
    example: Example
    # The same for its first steps, on single images, if its config has such.
    image_example: Example | None = None
    # Makes an example that is told other conditions than its own, for the held-out ratios: see `held_out.py`.
    told: Callable[..., Arrays] | None = None
    # Whether it trains on cached latents of the videos.
    latents: bool = False
    # Whether it also reads captions of no video.
    captions: bool = False
    # What it gives T5 and the MLLM to read of a clip; names as in warnings of texts that are too long.
    t5_texts: tuple[str, ...] = ()
    mllm_texts: tuple[str, ...] = ()
    # Measures and shows what was learned. All processes call it together; process 0 writes.
    report: Callable[[Run, Cinema, Params, MetricsWriter], dict[str, float]] = nothing_to_report

    def needed(self, config: Config) -> tuple[str, ...]:
        """The parts that a run of this config needs."""
        return self.parts

    def taught(self, config: Config) -> tuple[str, ...]:
        """The parts that the loss of such a run can teach."""
        return self.teaches

    def read_by_t5(self, config: Config) -> tuple[str, ...]:
        """The texts that such a run gives T5 to read."""
        return self.t5_texts

    def read_by_mllm(self, config: Config) -> tuple[str, ...]:
        """The texts that such a run gives the MLLM to read, if it has one."""
        return self.mllm_texts

    def afresh(self, config: Config) -> frozenset[str]:
        """The parts that start from random numbers, whatever weights there are."""
        return frozenset()

    def started(self, params: Params, origins: Mapping[str, str], trained: Collection[str]) -> Params:
        """All parameters as the stage starts from them.

        Args:
            params: as they were read or drawn.
            origins: of each part, where it was read, or "random".
            trained: the paths of those that the stage trains.
        """
        return params

    def on_latents(self, held_out: bool) -> bool:
        """Whether an example has its video's latents, in training or in the held-out evaluation."""
        return self.latents or (held_out and "dit" in self.parts)

    def closing_report(
        self, run: Run, configs: Mapping[str, Any], params: Params, metrics: MetricsWriter
    ) -> dict[str, float]:
        """Measurements of the finished stage, over the devices that hold `params`."""
        return self.report(run, Cinema(run.config, configs), params, metrics)

    def trained(self, config: Config, paths: Iterable[str]) -> tuple[list[str], list[str]]:
        """Parameter paths that the stage trains, and the rest, in order.

        Raises:
            InputError: a pattern of `trainable` or of the rates that is none, matches nothing, or names parameters
                that have no gradient.
        """
        paths = list(paths)
        self.check_trainable(config, paths)
        return trained(paths, config.of_stage(self.name))

    def check_trainable(self, config: Config, paths: Iterable[str]) -> None:
        """Refuse patterns of parameters that have no gradient: weight decay alone would move them.

        Args:
            paths: of all parameters.

        Raises:
            InputError: names the pattern and the part, and the parts that can be trained.
        """
        taught, paths = self.taught(config), list(paths)
        for pattern in config.of_stage(self.name).trainable:
            named = {path.split("/")[0] for path in paths if re.fullmatch(pattern, path)}
            if others := sorted(named.difference(taught)):
                raise InputError(
                    f"config.{self.name}.trainable holds {pattern!r}, which names parameters of {', '.join(others)}; "
                    f"the loss of this stage can train {', '.join(taught)} alone"
                )


def make_step(stage: Stage, cinema: Cinema, optimizer: Optimizer, state: TrainState) -> TrainStep:
    """The compiled step of a stage, for states like `state`, which may be abstract."""
    loss, config = stage.loss(cinema), cinema.config.of_stage(stage.name)
    return make_train_step(
        lambda params, frozen, batch, keys: loss({**frozen, **params}, batch, keys),
        optimizer,
        state,
        ema_decay=config.ema_decay,
        microbatches=config.microbatches,
    )


def per_token(values: Float[Array, "B T"], mask: Shaped[Array, "B T"]) -> Share:
    """The mean over those tokens of all samples together that `mask` marks."""
    mask = mask.astype(values.dtype)
    return Share((values * mask).sum(axis=1).mean(), mask.sum(axis=1).mean())
