"""Batches in an order that depends on the example's global number alone: not on hosts, workers or restarts.

Example number `i` of a run (counted over all batches and epochs) is dataset entry `Order(...)[i]`, its random numbers
come from `example_rng(seed, purpose, i)`, and step `s` is the examples `s * global_batch ... (s+1) * global_batch - 1`.
Any process can therefore load any rows of any step, and the state of the iteration is the step.

Where examples have several shapes (buckets), all examples of a step are of one bucket, and step `s` belongs to a bucket
by `s` and the buckets' sizes alone.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jaxtyping import Int64

from cinema_jax.data.worker import Loaded, MakeExample, Maker, Workers

# Batches made ahead of the one in use.
BATCHES_AHEAD = 2
# More than any run takes.
_STEPS = 2**40


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
    # Threads that make examples in this process, or wait for the workers. 0: none, examples are made on demand.
    num_threads: int = 8
    # Processes that make examples, for work that holds Python's lock. 0: threads alone, enough for decoding.
    num_workers: int = 0

    def __post_init__(self):
        for field, least in (("global_batch", 1), ("seed", 0), ("num_threads", 0), ("num_workers", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"LoaderConfig.{field} is {getattr(self, field)}; it must be at least {least}")

    @property
    def threads(self) -> int:
        """Those that make or fetch examples; one that waits for a worker costs nothing: two for each keep them busy."""
        return max(self.num_threads, 2 * self.num_workers)

    def ahead(self, rows: int) -> int:
        """Examples made ahead of those that are being stacked, where a process loads so many rows of a batch."""
        return max(self.threads, BATCHES_AHEAD * rows) if self.threads else 0

    def held(self, rows: int) -> int:
        """Most examples that this process holds at a time: those ahead, a batch being stacked and its parts, the batch
        before it, which is ready, and the one in use."""
        return self.ahead(rows) + (4 if self.threads else 3) * rows


def global_indices(step: int, global_batch: int) -> Int64[np.ndarray, " global_batch"]:
    """The global example numbers of one step's batch."""
    return np.arange(step * global_batch, (step + 1) * global_batch, dtype=np.int64)


class Order:
    """Global example number -> dataset index, as a pure function. Every epoch is a permutation of the dataset."""

    def __init__(self, size: int, seed: int, shuffle: bool):
        if size < 1:
            raise ValueError(f"Order.size is {size}; a dataset needs at least 1 example")
        order = grain.MapDataset.range(size)
        self._order = (order.seed(seed).shuffle() if shuffle else order).repeat()

    def __getitem__(self, global_index: int) -> int:
        return int(self._order[global_index])


class BucketOrder:
    """Global example number -> entry, as a pure function; the numbers of entries run through all buckets.

    Each bucket has as many of the steps as it has of the entries, spread evenly, and an `Order` of its own.
    """

    def __init__(self, sizes: Sequence[int], global_batch: int, seed: int, shuffle: bool):
        self._batch = global_batch
        self._orders = [Order(size, seed, shuffle) for size in sizes]
        self._starts = [0, *itertools.accumulate(sizes)]
        # (bucket, which of its steps) of every step.
        steps = [grain.MapDataset.range(_STEPS).map(lambda step, bucket=i: (bucket, step)) for i in range(len(sizes))]
        self._steps = grain.MapDataset.mix(steps, weights=[size / sum(sizes) for size in sizes])

    def __getitem__(self, global_index: int) -> int:
        step, row = divmod(global_index, self._batch)
        bucket, own_step = self._steps[step]
        return self._starts[bucket] + self._orders[bucket][own_step * self._batch + row]


class Loader:
    """Steps of batches from `make_example`, for this process's rows.

    An entry that raises `InputError` is replaced, as `Maker` says. Replacements are counted in `replaced`, the messages
    kept in `failures` (dataset index -> message), and `on_failure` is called with each, all in this process and for its
    own rows. With `num_workers` the function and what it refers to are pickled once for each worker process.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        make_example: MakeExample,
        config: LoaderConfig,
        *,
        rows: Sequence[int] | None = None,
        on_failure: Callable[[int, int, str], None] | None = None,
    ):
        """`sizes`: entries of each bucket. `rows`: which rows of the global batch to load, in this order; None: all."""
        self.config = config
        self.failures: dict[int, str] = {}
        self.replaced = 0
        self._on_failure = on_failure
        self._rows = tuple(range(config.global_batch) if rows is None else rows)
        if not self._rows or not set(self._rows) <= set(range(config.global_batch)):
            raise ValueError(f"Loader.rows is {rows}; it must name rows from 0 to {config.global_batch - 1}")
        self._order = BucketOrder(sizes, config.global_batch, config.seed, config.shuffle)
        self._maker = Maker(make_example, tuple(sizes), config.seed, config.purpose)

    def steps(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) from step `start` on, up to but without `stop` (None: endless).

        The batch has what `make_example` returns, stacked over this process's rows, and `index`: the global example
        numbers, int32. Raises `InputError` after 8 unreadable entries in a row. Close the iterator (or let it run to
        its end) to stop threads and workers.
        """
        count = None if stop is None else max(0, stop - start)
        workers = self.config.num_workers
        with closing(Workers(self._maker, workers)) if workers else nullcontext(self._maker) as make:
            batches = iter(self._dataset(make, start, count))
            try:
                for step, (batch, failures) in enumerate(batches, start):
                    for failure in failures:
                        self._record(*failure)
                    yield step, batch
            finally:
                batches.close()

    def entries(self, step: int) -> list[int]:
        """The dataset entries of this process's rows of a step, as long as all of them can be read."""
        return [self._order[index] for index in self._indices(step)]

    def _indices(self, step: int) -> list[int]:
        """The global numbers of this process's examples in a step."""
        return [step * self.config.global_batch + row for row in self._rows]

    def _dataset(self, make: Callable[[int, int], Loaded], start: int, count: int | None) -> grain.IterDataset:
        rows = len(self._rows)

        def load(position: int) -> Loaded:
            step, row = divmod(int(position), rows)
            index = (start + step) * self.config.global_batch + self._rows[row]
            return make(index, self._order[index])

        examples = grain.MapDataset.range(sys.maxsize if count is None else count * rows).map(load)
        threads, ahead = self.config.threads, self.config.ahead(rows)
        loaded = examples.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        batched = loaded.batch(rows, drop_remainder=True, batch_fn=_collate)
        return ThreadPrefetchIterDataset(batched, prefetch_buffer_size=1) if threads else batched

    def _record(self, global_index: int, dataset_index: int, message: str) -> None:
        self.replaced += 1
        self.failures[dataset_index] = message
        if self._on_failure is not None:
            self._on_failure(global_index, dataset_index, message)


def _collate(elements: list[Loaded]) -> Loaded:
    examples = [example for example, _ in elements]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return batch, [failure for _, failures in elements for failure in failures]
