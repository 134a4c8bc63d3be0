"""How long a run still takes: its present stage as fast as it goes, those after it by what they compute."""

from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from cinema_jax.experiment.run import Run
from cinema_jax.training import rehearsal
from cinema_jax.training.phases import Phase, batch_shapes, every_run, phase_of, phases, run_in
from cinema_jax.training.stages import STAGES
from cinema_jax.training.work import products, work


class Remaining:
    """The time left of a run, as one of its stages goes.

    Phases and stages after the present one are counted in a thread of their own when somebody first asks.
    """

    def __init__(self, run: Run, stage: str):
        stages = run.config.stages
        later = [name for name in stages[stages.index(stage) + 1 :] if run.finished(name) is None]
        self._run, self._stage, self._later = run, stage, later
        self._phases = phases(run.config, stage)
        self._thread = ThreadPoolExecutor(1)
        # Of what is counted: a later phase of this stage, or a later stage.
        self._counted: dict[Phase | str, Future[int]] | None = None
        self.title = f"{stage} ({stages.index(stage) + 1} of {len(stages)})" if len(stages) > 1 else stage

    def seconds(self, steps: int, pace: float, flops: int | None) -> float | None:
        """Until the last stage is done; None while what comes later is not counted, or where it cannot be.

        Args:
            steps: left of this stage.
            pace: seconds of one of them, as it goes now.
            flops: that it computes in these; None if that is not known yet.
        """
        done = self._phases[-1].end - steps
        now = phase_of(max(0, done - 1), self._phases)
        later = [*(phase for phase in self._phases if phase.first >= now.end), *self._later]
        if not later:
            return steps * pace
        if flops is None:
            return None
        if self._counted is None:
            self._counted = {one: self._thread.submit(self._flops, one) for one in later}
        if not all(self._counted[one].done() and self._counted[one].exception() is None for one in later):
            return None
        return pace * (now.end - done + sum(self._counted[one].result() for one in later) / flops)

    def _flops(self, one: Phase | str) -> int:
        """Of a phase of the present stage, or of a later stage with the encoding of its videos."""
        return stage_flops(self._run, one) if isinstance(one, str) else phase_flops(self._run, self._stage, one)

    def close(self) -> None:
        """Wait for nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def stage_flops(run: Run, stage: str) -> int:
    """What all steps of a stage compute, and the encoding of their videos.

    Neither its compilation nor its evaluations and reports are in it.
    """
    total = sum(phase_flops(run, stage, phase) for phase in phases(run.config, stage))
    if not STAGES[stage].latents or run.config.data.source == "records":
        return total
    cinema = rehearsal.networks(run, stage)
    # The clips of a phase are encoded apart from those of the others.
    for one in every_run(run, [stage]):
        mixture = rehearsal.examples(one, stage)
        for (bucket, _), examples in zip(one.sources("train"), mixture.buckets, strict=True):
            data = bucket.config.data
            clip = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), np.uint8)
            total += len(examples.indices) * products(cinema.encode_video, (cinema.shapes, clip))
    return total


def phase_flops(run: Run, stage: str, phase: Phase) -> int:
    """What the steps of one phase compute: of each bucket as many as it has of the clips."""
    cinema, mixture = rehearsal.networks(run, stage), rehearsal.examples(run_in(run, stage, phase), stage)
    trained, _ = STAGES[stage].trained(run.config, cinema.shapes)
    steps = [work(STAGES[stage], cinema, trained, batch_shapes(bucket, phase)).flops for bucket in mixture.buckets]
    clips = sum(size * step for size, step in zip(mixture.sizes, steps, strict=True))
    return (phase.end - phase.first) * clips // len(mixture)
