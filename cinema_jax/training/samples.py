"""Videos that a run generates while it trains and at its end: all stages share the sampler's programs."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from cinema_jax.cinema import Cinema, Params
from cinema_jax.config import Config
from cinema_jax.devices import watchdog
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.requests import Request, needed_parts
from cinema_jax.sampling.sampler import Sampler

# Videos sampled at once. One size, so that one program is compiled.
BATCH = 4


def trained_sampler(run: Run, configs: Mapping[str, Any], params: Params) -> Sampler:
    """A sampler of these weights, or of those among them that it needs and the MLLM, which judges.

    Samplers of one run whose parts are of one size share what they compile.
    """
    names = sorted({*needed_parts(run.config), "mllm"}.intersection(configs))
    sampler = copy.copy(_programs(run.config, tuple((name, configs[name]) for name in names)))
    sampler.params = {path: x for path, x in params.items() if path.split("/")[0] in names}
    sampler.preprocessor = run.preprocessor()
    return sampler


@functools.lru_cache(maxsize=1)
def _programs(config: Config, part_configs: tuple[tuple[str, Any], ...]) -> Sampler:
    """Without weights, which would stay in memory."""
    return Sampler(Cinema(config, dict(part_configs)), {}, None)


def generate(
    sampler: Sampler, requests: Sequence[Request], description: str | None
) -> list[UInt8[np.ndarray, "frames height width 3"]]:
    """The videos of any number of requests; `description` is that of the progress bar, None: without one."""
    videos = []
    for start in tqdm(range(0, len(requests), BATCH), desc=description, unit="batch", disable=description is None):
        watchdog.begin("the sampling of held-out examples")
        now = list(requests[start : start + BATCH])
        videos.extend(sampler(now + now[:1] * (BATCH - len(now)), sampler.settings())[: len(now)])
    return videos
