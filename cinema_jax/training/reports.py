"""Pictures of held-out examples to look at, while a stage trains and at its end."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.example import Conditions, EncodedSource, Source
from cinema_jax.data.output import visible, write_video
from cinema_jax.data.sheets import Group, Row, contact_sheet, spread
from cinema_jax.devices import distributed
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.files import whole_file
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import Sampler
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.samples import BATCH, generate

logger = logging.getLogger(__name__)

# Rows of a contact sheet: of a finished stage, and while it trains.
SHOWN, GLIMPSED = 8, BATCH


def show_samples(run: Run, sampler: Sampler, metrics: MetricsWriter) -> None:
    """Generated videos of held-out subjects beside references and real videos."""
    data = run.config.data
    videos = show_sheet(run, sampler, metrics, run.config.finetune.steps, SHOWN, "sample")
    for index, video in enumerate(videos):
        if distributed.is_first():
            file = run.workdir / "samples" / f"{index:02d}.mp4"
            write_video(file, visible(video, data.fps, file)[0], data.fps)
        metrics.video(run.config.finetune.steps, f"sample_{index:02d}", video, data.fps)


def show_sheet(
    run: Run,
    sampler: Sampler,
    metrics: MetricsWriter,
    step: int,
    count: int = GLIMPSED,
    description: str | None = None,
) -> list[UInt8[np.ndarray, "frames height width 3"]]:
    """The contact sheet: generated videos of `count` held-out examples, or as many as there are, which it returns.

    Args:
        step: of the stage, for TensorBoard.
        description: of the progress bar; None: without one.
    """
    source = run.source("validation")
    told = shown_examples(run, source, count)
    if not told:
        logger.warning("no held-out clip is of %s: there is nothing to show", run.bucket_name or "the run's size")
        return []
    requests = [Request(c.prompt, c.references, seed=index) for index, c in told.items()]
    videos, rows = generate(sampler, requests, description), []
    for (index, conditions), video in zip(told.items(), videos, strict=True):
        groups = [
            Group("references", list(sampler.preprocessor.seen(conditions.references))),
            real_video(sampler, source, index),
            Group("generated video", spread(video, 4)),
        ]
        rows.append(Row(groups, conditions.prompt))
    save_sheet(run, "contact_sheet", rows, metrics, step)
    return videos


def shown_examples(run: Run, source: Source, count: int) -> dict[int, Conditions]:
    """Held-out examples for people to look at, by index: of few subjects first, and as often of few as in the data."""
    asked = {index: held_out_conditions(run, source, index) for index in range(min(3 * count, len(source)))}
    by_subjects = sorted(asked, key=lambda index: len(asked[index].references))
    chosen = np.linspace(0, len(asked) - 1, min(count, len(asked))).round().astype(int)
    return {index: asked[index] for index in (by_subjects[place] for place in chosen)}


def real_video(sampler: Sampler, source: Source, index: int) -> Group:
    """Frames of an example's video; of one of which only latents are left, what the VAE makes of them."""
    if not isinstance(source, EncodedSource):
        return Group("real video", spread(source.video(index), 4))
    latents = source.latents[index].astype(np.float32)[None]
    decoded = distributed.fetch(sampler.decode(sampler.params, latents))
    return Group("real video, decoded", spread(decoded[0], 4))


def held_out_conditions(run: Run, source: Source, index: int) -> Conditions:
    """The conditions of a held-out example, the same at every call."""
    return source.conditions(index, np.random.default_rng([run.config.seed, index]))


def save_sheet(run: Run, name: str, rows: Sequence[Row], metrics: MetricsWriter, step: int = 0) -> None:
    """Write a contact sheet to the run's `samples/NAME.png`, and to TensorBoard; process 0 alone does."""
    if not distributed.is_first():
        return
    sheet = contact_sheet(rows)
    path = run.workdir / "samples" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    # Whoever has it open while the run trains never sees half of one.
    with whole_file(path) as partial:
        sheet.save(partial, "PNG")
    metrics.images(step, name, np.asarray(sheet)[None])
    logger.info("%s: %d examples to look at", path, len(rows))
