"""Batches in an order that depends on the example's global number alone: not on hosts, workers or restarts.

Example number `i` of a run (counted over all batches and epochs) is dataset entry `Order(...)[i]`, its random numbers
come from `example_rng(seed, purpose, i)`, and step `s` is the examples `s * global_batch ... (s+1) * global_batch - 1`.
Any process can therefore load any rows of any step, and the state of the iteration is the step.
"""

import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset
from jaxtyping import Int64

from cinema_jax.errors import InputError

Arrays = dict[str, np.ndarray | np.generic]
# (dataset index, global example index, generator) -> arrays without a batch axis, of the same shapes for every example.
MakeExample = Callable[[int, int, np.random.Generator], Arrays]
# (global example index, dataset index, message)
Failure = tuple[int, int, str]
Loaded = tuple[Arrays, list[Failure]]
# So many unreadable entries in a row are no accident.
MAX_ATTEMPTS = 8
# Batches made ahead of the one in use.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are drawn. Threads and workers change the speed and nothing else."""

    # Examples in one batch over all processes.
    global_batch: int
    # Of order and augmentation.
    seed: int = 0
    # A new order each epoch; False: in the dataset's order, over and over.
    shuffle: bool = True
    # Keeps the random numbers of several loaders of one seed apart ("train", "validation").
    purpose: str = "train"
    # Threads that make examples, in each worker process (or in this process if there are none). 0: none, on demand.
    num_threads: int = 8
    # Worker processes, for work that holds Python's lock. 0: threads alone, which is enough where decoding dominates.
    num_workers: int = 0

    def __post_init__(self):
        for field, least in (("global_batch", 1), ("seed", 0), ("num_threads", 0), ("num_workers", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"LoaderConfig.{field} is {getattr(self, field)}; it must be at least {least}")


def global_indices(step: int, global_batch: int) -> Int64[np.ndarray, " global_batch"]:
    """The global example numbers of one step's batch."""
    return np.arange(step * global_batch, (step + 1) * global_batch, dtype=np.int64)


def example_rng(seed: int, purpose: str, global_index: int, attempt: int = 0) -> np.random.Generator:
    """The generator of one example: independent of row, host, worker and everything that came before."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), global_index, attempt])


class Order:
    """Global example number -> dataset index, as a pure function. Every epoch is a permutation of the dataset."""

    def __init__(self, size: int, seed: int, shuffle: bool):
        if size < 1:
            raise ValueError(f"Order.size is {size}; a dataset needs at least 1 example")
        order = grain.MapDataset.range(size)
        self._order = (order.seed(seed).shuffle() if shuffle else order).repeat()
        self._size, self._seed = size, seed

    def __getitem__(self, global_index: int) -> int:
        return int(self._order[global_index])

    def replacement(self, global_index: int, attempt: int) -> int:
        """Which entry to take when those of attempts 0 .. attempt - 1 could not be read."""
        if attempt == 0:
            return self[global_index]
        return int(np.random.SeedSequence([self._seed, global_index, attempt]).generate_state(1)[0]) % self._size


class Loader:
    """Steps of batches from `make_example`, for this process's rows.

    An entry that raises `InputError` is replaced by another one; which, is a function of the example's number alone, so
    all processes agree. Replacements are counted in `replaced`, the messages kept in `failures` (dataset index ->
    message), and `on_failure` is called with each, all in this process and for its own rows. With `num_workers` the
    function and what it refers to are pickled, and must not touch an accelerator.
    """

    def __init__(
        self,
        size: int,
        make_example: MakeExample,
        config: LoaderConfig,
        *,
        rows: slice | None = None,
        on_failure: Callable[[int, int, str], None] | None = None,
    ):
        """`size`: entries of the dataset. `rows`: the contiguous rows of the global batch to load; None for all."""
        self.config = config
        self.failures: dict[int, str] = {}
        self.replaced = 0
        self._on_failure = on_failure
        first, last, stride = (rows or slice(None)).indices(config.global_batch)
        if stride != 1 or first >= last:
            raise ValueError(
                f"Loader.rows is {rows}; it must be contiguous, not empty and within {config.global_batch}"
            )
        self._rows = range(first, last)
        self._make = _Maker(Order(size, config.seed, config.shuffle), make_example, config, first, last - first)

    def steps(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) from step `start` on, up to but without `stop` (None: endless).

        The batch has what `make_example` returns, stacked over this process's rows, and `index`: the global example
        numbers, int32. Raises `InputError` after 8 unreadable entries in a row. Close the iterator (or let it run to
        its end) to stop threads and workers.
        """
        count = None if stop is None else max(0, stop - start)
        batches = iter(self._dataset(start, count))
        try:
            for step, (batch, failures) in enumerate(batches, start):
                for failure in failures:
                    self._record(*failure)
                yield step, batch
        finally:
            batches.close()

    def entries(self, step: int) -> list[int]:
        """The dataset entries of this process's rows of a step, as long as all of them can be read."""
        first = step * self.config.global_batch
        return [self._make.order[first + row] for row in self._rows]

    def _dataset(self, start: int, count: int | None) -> grain.IterDataset:
        rows = len(self._rows)
        length = sys.maxsize if count is None else count * rows
        positions = _Offset(start * rows)
        examples = grain.MapDataset.range(length).map(positions).map(self._make)
        workers, threads = self.config.num_workers, self.config.num_threads
        ahead = max(threads, 1) if workers else max(threads, BATCHES_AHEAD * rows)
        loaded = examples.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        if workers:
            if not flags.FLAGS.is_parsed():
                # Grain asks absl flags about profiling; outside an absl command (a notebook) nobody has parsed them.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-BATCHES_AHEAD * rows // workers))
            loaded = loaded.mp_prefetch(options, worker_init_fn=_keep_off_accelerators)
        batched = loaded.batch(rows, drop_remainder=True, batch_fn=_collate)
        return batched if threads == 0 and workers == 0 else ThreadPrefetchIterDataset(batched, prefetch_buffer_size=1)

    def _record(self, global_index: int, dataset_index: int, message: str) -> None:
        self.replaced += 1
        self.failures[dataset_index] = message
        if self._on_failure is not None:
            self._on_failure(global_index, dataset_index, message)


@dataclass(frozen=True)
class _Offset:
    start: int

    def __call__(self, position: int) -> int:
        return self.start + int(position)


@dataclass(frozen=True)
class _Maker:
    """Makes the example at a position in the sequence of this process's examples."""

    order: Order
    make_example: MakeExample
    config: LoaderConfig
    first_row: int
    rows: int

    def __call__(self, position: int) -> Loaded:
        step, row = divmod(position, self.rows)
        global_index = step * self.config.global_batch + self.first_row + row
        failures: list[Failure] = []
        for attempt in range(MAX_ATTEMPTS):
            dataset_index = self.order.replacement(global_index, attempt)
            rng = example_rng(self.config.seed, self.config.purpose, global_index, attempt)
            try:
                example = self.make_example(dataset_index, global_index, rng)
            except InputError as error:
                failures.append((global_index, dataset_index, str(error)))
                continue
            return {**example, "index": np.int32(global_index)}, failures
        raise InputError(f"{MAX_ATTEMPTS} examples in a row could not be read; the last one: {failures[-1][2]}")


def _collate(elements: list[Loaded]) -> Loaded:
    examples = [example for example, _ in elements]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return batch, [failure for _, failures in elements for failure in failures]


def _keep_off_accelerators(worker: int, workers: int) -> None:
    """Grain itself imports jax where it finds it: a worker that came to touch it must not claim this host's chips."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
