"""Shards on Apache Beam: processes of this machine, or whatever its runners reach."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from tqdm import tqdm

from cinema_jax.curation.shards import Shard, Work
from cinema_jax.errors import InputError

# Beam's own choice for this machine may be a program that it downloads first.
_LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_SECONDS = 2.0


class _Do(beam.DoFn):
    """Does a shard, keeps its results in their file, and counts them."""

    def __init__(self, work: Work):
        self._work = work

    def process(self, shard: Shard) -> Iterator[str]:
        results = shard.do(self._work)
        Metrics.counter("cinema_jax.curate", "videos").inc(len(shard.items))
        Metrics.counter("cinema_jax.curate", "clips").inc(len(results.clips))
        for one in results.rejected:
            Metrics.counter("cinema_jax.curate", f"{one.step}: {one.reason}").inc()
        yield shard.file


def knows(flag: str) -> bool:
    """Whether a word of a command line, such as `--region=x`, is a flag of Beam or of one of its runners."""
    name = flag.removeprefix("--").partition("=")[0].replace("-", "_")
    return flag.startswith("--") and name.removeprefix("no_") in PipelineOptions([]).get_all_options()


def options(workers: int, own: Sequence[str]) -> list[str]:
    """Beam's flags: a user's own, or without a runner among them those of so many processes on this machine.

    Raises:
        InputError: workers are asked for together with a runner, which has its own.
    """
    if any(word.startswith("--runner") for word in own):
        if workers != 1:
            raise InputError("--workers is of this machine alone; a runner of Beam has flags of its own for that")
        return list(own)
    mode = "in_memory" if workers == 1 else "multi_processing"
    local = [f"--runner={_LOCAL}", f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]
    return [*local, "--default_sdk_harness_log_level=ERROR", *own]


def run(work: Work, shards: Sequence[Shard], flags: Sequence[str], step: str) -> None:
    """Do the shards whose results are not there yet. What Beam raises where one of them fails is raised."""
    missing = [shard for shard in shards if not shard.done()]
    if not missing:
        return
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    with _progress(step, shards, missing):
        pipeline = beam.Pipeline(options=PipelineOptions(list(flags), save_main_session=False))
        _ = pipeline | beam.Create(missing) | beam.Reshuffle() | beam.ParDo(_Do(work))
        pipeline.run().wait_until_finish()


@contextlib.contextmanager
def _progress(step: str, shards: Sequence[Shard], missing: Sequence[Shard]) -> Iterator[None]:
    """A bar of videos, by the results that appear."""
    ended = threading.Event()
    left = list(missing)

    def watch() -> None:
        total = sum(len(shard.items) for shard in shards)
        begun = total - sum(len(shard.items) for shard in missing)
        with tqdm(desc=step, total=total, initial=begun, unit="video", mininterval=_SECONDS) as bar:
            last = False
            while not last:
                last = ended.wait(_SECONDS)
                done = [shard for shard in left if shard.done()]
                bar.update(sum(len(shard.items) for shard in done))
                left[:] = [shard for shard in left if shard not in done]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
