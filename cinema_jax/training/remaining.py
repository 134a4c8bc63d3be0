"""How long a run still takes: its present stage as fast as it goes, those after it by what they compute."""

from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from cinema_jax.training import rehearsal
from cinema_jax.training.phases import batch_shapes, phases
from cinema_jax.training.run import Run
from cinema_jax.training.stages import STAGES
from cinema_jax.training.work import products, work


class Remaining:
    """The time left of a run, as one of its stages goes.

    The later stages are counted in a thread of their own when somebody first asks.
    """

    def __init__(self, run: Run, stage: str):
        stages = run.config.stages
        later = [name for name in stages[stages.index(stage) + 1 :] if run.finished(name) is None]
        self._run, self._later = run, later
        self._thread = ThreadPoolExecutor(1)
        self._counted: list[Future[int]] | None = None
        self.title = f"{stage} ({stages.index(stage) + 1} of {len(stages)})" if len(stages) > 1 else stage

    def seconds(self, steps: int, pace: float, flops: int | None) -> float | None:
        """Until the last stage is done; None while the later ones are not counted, or where they cannot be.

        Args:
            steps: left of this stage.
            pace: seconds of one of them.
            flops: that it computes in these; None if that is not known yet.
        """
        if not self._later:
            return steps * pace
        if flops is None:
            return None
        if self._counted is None:
            self._counted = [self._thread.submit(stage_flops, self._run, name) for name in self._later]
        if not all(one.done() and one.exception() is None for one in self._counted):
            return None
        return pace * (steps + sum(one.result() for one in self._counted) / flops)

    def close(self) -> None:
        """Wait for nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def stage_flops(run: Run, stage: str) -> int:
    """What all steps of a stage compute, and the encoding of their videos.

    Neither its compilation nor its evaluations and reports are in it. Steps are as often of one bucket as of another.
    """
    cinema, mixture = rehearsal.networks(run, stage), rehearsal.examples(run, stage)
    trained, _ = STAGES[stage].trained(run.config, cinema.shapes)
    total, encodes = 0, STAGES[stage].latents and run.config.data.source != "records"
    for one, bucket in zip(run.buckets, mixture.buckets, strict=True):
        for phase in phases(run.config, stage):
            step = work(STAGES[stage], cinema, trained, batch_shapes(bucket, phase)).flops
            total += (phase.end - phase.first) * step // len(mixture.buckets)
        if encodes:
            data = one.config.data
            clip = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), np.uint8)
            total += len(bucket.indices) * products(cinema.encode_video, (cinema.shapes, clip))
    return total
