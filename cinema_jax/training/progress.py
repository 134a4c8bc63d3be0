"""What a stage's steps report, written without making the device wait."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import jax

from cinema_jax.training.goodput import Goodput
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.profile import Profile
from cinema_jax.training.remaining import Remaining
from cinema_jax.training.step import Share
from cinema_jax.training.watch import DroppedUpdates, Supply
from cinema_jax.training.work import WorkCounter

# Names of what depends on the machine and the moment, not on the run's config alone.
PERFORMANCE = "perf/"


class Progress:
    """Reads each step's values when the next step is under way, and writes those of log steps in order.

    A context manager around a stage's steps. Every method must be called by every process; the first one writes.

    Args:
        start: steps done before.
        log_every, last: steps whose number log_every divides, and the last one, are logged.
        shares: sums of the `Share` metrics since the last log step, by name. Kept up to date in place: who saves it
            with a checkpoint and hands it in again loses nothing of an interval.
        dropped: updates dropped before.
        not_finite: makes the error that ends the run when the updates of these steps (0 = first) were dropped.
    """

    def __init__(
        self,
        metrics: MetricsWriter,
        supply: Supply,
        goodput: Goodput,
        profile: Profile,
        work: WorkCounter,
        remaining: Remaining,
        *,
        start: int,
        log_every: int,
        last: int,
        shares: MutableMapping[str, tuple[float, float]],
        dropped: int,
        not_finite: Callable[[list[int]], Exception],
    ):
        self._metrics, self._supply, self._goodput = metrics, supply, goodput
        self._profile, self._work, self._remaining = profile, work, remaining
        self._log_every, self._last, self._logged = log_every, last, start
        self._shares, self._not_finite = shares, not_finite
        self._dropped = DroppedUpdates(dropped)
        self._pending: tuple[int, Mapping[str, Any], Mapping[str, float]] | None = None
        self._compiled: set[Any] = set()
        self._waited = 0.0
        self._before = dict(goodput.seconds)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.finish()
        self._work.close()
        self._remaining.close()

    @contextlib.contextmanager
    def dispatching(self, batch: Mapping[str, jax.Array]) -> Iterator[None]:
        """Around the call of a step: the first one for a shape of batch waits for the compiler."""
        shapes = tuple((name, x.shape) for name, x in batch.items())
        if not self._compiled:
            self._goodput.resume()
        if shapes in self._compiled:
            yield
        else:
            self._book_steps()
            yield
            self._goodput.book("compile")
            self._compiled.add(shapes)

    @contextlib.contextmanager
    def pause(self, category: str) -> Iterator[None]:
        """Wait for the last step and write what it says; then book the time in here as `category`, not as steps."""
        self.flush()
        self._book_steps()
        yield
        self._goodput.book(category)

    def add(self, done: int, batch: Mapping[str, jax.Array], values: Mapping[str, Any], **also: int | float) -> None:
        """Step number `done` (1 = first) was dispatched and will have `values`; `also` is logged beside them.

        Waits for the step before it. Raises what `not_finite` makes once three updates in a row were dropped.
        """
        for leaf in jax.tree.leaves(values):
            leaf.copy_to_host_async()
        self.flush()
        self._pending = done, values, also
        if self._metrics.primary:
            self._work.add(batch)

    def flush(self) -> None:
        """Wait for the last step, and write what it has to say."""
        if self._pending is None:
            return
        (done, values, also), self._pending = self._pending, None
        values = jax.device_get(values)
        if self._dropped.too_many(done - 1, int(values["skipped"])):
            raise self._not_finite(self._dropped.in_a_row)
        for name, share in values.items():
            if isinstance(share, Share):
                total, weight = self._shares.get(name, (0.0, 0.0))
                self._shares[name] = total + float(share.total), weight + float(share.weight)
        if done % self._log_every == 0 or done == self._last:
            self._log(done, {name: x for name, x in values.items() if not isinstance(x, Share)} | also)

    def _log(self, done: int, values: Mapping[str, Any]) -> None:
        means = {name: total / weight if weight else math.nan for name, (total, weight) in self._shares.items()}
        self._shares.clear()
        if self._metrics.primary:
            performance = self._performance(done)
            self._metrics.write(done, {**values, **means, **performance})
            pace, flops = 1 / performance[PERFORMANCE + "steps_per_second"], self._work.step_flops
            left = self._remaining.seconds(self._last - done, pace, flops)
            self._metrics.progress(done, left=left, loss=float(values["loss"]))
            self._goodput.write()
        self._logged = done

    def _performance(self, done: int) -> dict[str, float]:
        """Rates since the last log step, of the time that went to steps and to waiting for their data."""
        self._book_steps()
        now = dict(self._goodput.seconds)
        spent = {name: now[name] - self._before[name] for name in now}
        self._before = now
        seconds = spent["step"] + spent["data"]
        rates = {
            "steps_per_second": (done - self._logged) / seconds,
            "data_wait": spent["data"] / seconds,
            "goodput": self._goodput.share,
            **self._work.rates(seconds),
            **device_memory(),
        }
        return {PERFORMANCE + name: value for name, value in rates.items()}

    def _book_steps(self) -> None:
        self._goodput.book("step")
        self._goodput.waited(self._supply.waited - self._waited)
        self._waited = self._supply.waited


def device_memory() -> dict[str, float]:
    """GiB in use and at the peak on this process's fullest device; nothing where the platform does not say (a CPU)."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"hbm_gib": "bytes_in_use", "hbm_peak_gib": "peak_bytes_in_use"}
    return {name: max(s[key] for s in stats) / 2**30 for name, key in names.items() if stats}
