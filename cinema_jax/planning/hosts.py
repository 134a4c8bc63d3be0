"""What a training run asks of each host: rows to load, bytes to read, memory, and its share of a checkpoint."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cinema_jax.cinema import Cinema
from cinema_jax.data.loader import LoaderConfig
from cinema_jax.devices import sharding
from cinema_jax.devices.chips import chip_of
from cinema_jax.experiment.run import Run
from cinema_jax.planning import program
from cinema_jax.planning.program import Program
from cinema_jax.training.held_out import KINDS
from cinema_jax.training.phases import label
from cinema_jax.training.stages import STAGES

GIB = 2**30
MIB = 2**20
# Bytes a second between a host and a disk or bucket, where nobody says better.
BANDWIDTH = 1e9
# Of a worker process, its examples aside: 96 MiB with critters and the packaged tokenizer (`benchmarks/hosts.md`), and
# room for a released tokenizer's 150,000 words and for libraries that read videos or records.
WORKER_BYTES = 256 * MIB
# Of a token of text.
TOKEN_BYTES = 4
DRAWN = "parts that start from random numbers"
# What `training.latents` keeps of a video.
LATENTS = "latents in fp32"

# Of all hosts, the least and the most.
Range = tuple[float, float]


class Bound(NamedTuple):
    """The least time of a step, and what it follows from."""

    seconds: float
    by: str


@dataclasses.dataclass(frozen=True)
class Loading:
    """The rows of a host and what it reads for them.

    Attributes:
        rows: of the global batch, that a host loads.
        scattered: hosts whose rows are not neighbours.
        loaded: how many hosts load each row.
        step_s: the least time of a step, which follows from `step_bound`.
        examples_per_second: that a host must make, at most.
        example_mib: an example as the step takes it.
        read_mib: what is read of an example, by what it is; None: not known.
        read_mb_per_second: what a host must read (10^6 bytes), of what is known.
    """

    rows: tuple[int, int]
    scattered: int
    loaded: tuple[int, int]
    step_s: float
    step_bound: str
    examples_per_second: float
    example_mib: float
    source: str
    read_mib: dict[str, float | None]
    read_mb_per_second: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the run itself holds in a host's memory, in GiB: Python, its libraries and the compiler come on top.

    Attributes:
        start_gib: while the run starts, by what holds it; all but what is drawn is there one after the other.
        run_gib: while it trains and a checkpoint is being written.
        most_gib: the most of both.
        limit_gib: of the host; None: not known.
        latents_gib: of the file of encoded videos, which lies in the system's page cache as far as there is room; None:
            there is one, and how many videos there are is not known.
    """

    start_gib: dict[str, float]
    run_gib: dict[str, float]
    most_gib: float
    limit_gib: float | None
    latents_gib: float | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """What goes between a host and disk or bucket beside the data, and how long that takes.

    Attributes:
        checkpoint_gib: what a host writes; `total_gib`: all hosts together, each checkpoint.
        restore_gib: what a host reads of it, its chips' whole share.
        weights_gib: of all parts' weights in bf16, which every host reads when a stage starts.
    """

    checkpoint_gib: Range
    total_gib: float
    checkpoint_s: float
    restore_gib: Range
    restore_s: float
    weights_gib: float
    weights_s: float
    gb_per_second: float


@dataclasses.dataclass(frozen=True)
class Hosts:
    """What one stage on one mesh asks of each host. `notes` say what is lawful and probably not meant."""

    stage: str
    topology: str
    mesh: dict[str, int]
    hosts: int
    chips_per_host: int
    batch: int
    loading: Loading
    memory: Memory
    storage: Storage
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether the host's memory holds it, as far as both are known."""
        return self.memory.limit_gib is None or self.memory.most_gib <= self.memory.limit_gib

    @property
    def excess(self) -> str:
        """What a host needs and does not have, in a sentence's words."""
        most, limit = self.memory.most_gib, self.memory.limit_gib
        return f"{self.stage} on {self.topology} needs {most:.1f} of {limit:.1f} GiB a host"


def measure(
    run: Run, stage: str, topology: str, mesh: Mesh, planned: Program, bound: Bound, bandwidth: float = BANDWIDTH
) -> Hosts:
    """Of a stage's step on `mesh`, whose chips need not be at hand.

    Args:
        bandwidth: between a host and disk or bucket, bytes a second.
    """
    assert planned.cinema is not None, "a sampler's program loads no batch"
    chips = Counter(device.process_index for device in mesh.devices.flat)
    loading = _loading(run, stage, mesh, planned, bound)
    written, held = shares(planned.state, mesh)
    random, notes = _random_parts(run, stage, planned.cinema, planned.state.params)
    start, running = _memory(run, loading, planned.cinema, random, max(written.values()), max(held.values()))
    drawn, limit = start.get(DRAWN, 0.0), chip_of(topology).host_gb.get(max(chips.values()))
    return Hosts(
        stage=label(run, stage) + (f" of bucket {run.bucket_name}" if run.bucket_name else ""),
        topology=topology,
        mesh=dict(mesh.shape),
        hosts=len(chips),
        chips_per_host=max(chips.values()),
        batch=run.config.of_stage(stage).batch_size,
        loading=loading,
        memory=Memory(
            start,
            running,
            max(drawn + max(x for name, x in start.items() if name != DRAWN), sum(running.values())),
            None if limit is None else limit * 1e9 / GIB,
            _latents_file(run, stage, planned.cinema),
        ),
        storage=_storage(planned.cinema, random, written, held, bandwidth),
        notes=[*notes, *_notes(run, stage, mesh)],
    )


def _loading(run: Run, stage: str, mesh: Mesh, planned: Program, bound: Bound) -> Loading:
    rows = sharding.host_rows(mesh, run.config.of_stage(stage).batch_size)
    loads = Counter(row for own in rows.values() for row in own)
    counts, times = [len(own) for own in rows.values()], loads.values()
    read = read_bytes(run, stage, planned.cinema)
    per_second = max(counts) / bound.seconds
    return Loading(
        rows=(min(counts), max(counts)),
        scattered=sum(own != tuple(range(own[0], own[0] + len(own))) for own in rows.values()),
        loaded=(min(times), max(times)),
        step_s=bound.seconds,
        step_bound=bound.by,
        examples_per_second=per_second,
        example_mib=_nbytes(planned.arguments[2]) / run.config.of_stage(stage).batch_size / MIB,
        source=run.config.data.source,
        read_mib={name: None if size is None else size / MIB for name, size in read.items()},
        read_mb_per_second=per_second * sum(size or 0 for size in read.values()) / 1e6,
    )


def _memory(
    run: Run, loading: Loading, cinema: Cinema, random: set[str], written: float, held: float
) -> tuple[dict[str, float], dict[str, float]]:
    """GiB while a stage starts, and while it trains, by what holds them."""
    data, example = run.config.data, loading.example_mib * MIB
    config = LoaderConfig(1, num_threads=data.threads, num_workers=data.workers)
    examples = config.held(loading.rows[1])
    drawn = 4 * sum(_numbers(cinema, lambda part: part in random))
    start = {
        DRAWN: drawn,
        "the state being restored": held,
        "the largest tensor, read to compare weights": 4 * max(_numbers(cinema, lambda part: part not in random)),
    }
    running = {
        DRAWN: drawn,
        f"{examples} examples of the loader": examples * example,
        f"{data.workers} worker processes": data.workers * (WORKER_BYTES + 2 * example),
        "a checkpoint being written": written,
    }
    if data.source == "records":
        from cinema_jax.data.records import KEPT

        record = sum(size or 0 for size in loading.read_mib.values()) * MIB
        running["records kept after reading"] = KEPT * max(1, data.workers) * record
    return _gib(start), _gib(running)


def _storage(
    cinema: Cinema, random: set[str], written: Mapping[int, float], held: Mapping[int, float], bandwidth: float
) -> Storage:
    weights = 2 * sum(_numbers(cinema, lambda part: part not in random))
    return Storage(
        checkpoint_gib=(min(written.values()) / GIB, max(written.values()) / GIB),
        total_gib=sum(written.values()) / GIB,
        checkpoint_s=max(written.values()) / bandwidth,
        restore_gib=(min(held.values()) / GIB, max(held.values()) / GIB),
        restore_s=max(held.values()) / bandwidth,
        weights_gib=weights / GIB,
        weights_s=weights / bandwidth,
        gb_per_second=bandwidth / 1e9,
    )


def _numbers(cinema: Cinema, of: Callable[[str], bool]) -> list[int]:
    """How many each tensor of some parts has."""
    return [math.prod(x.shape) for path, x in cinema.shapes.items() if of(path.split("/")[0])] or [0]


def shares(tree: Any, mesh: Mesh) -> tuple[dict[int, float], dict[int, float]]:
    """Bytes of `tree` that each process writes to a checkpoint, and that its devices hold, by process index."""
    processes = sorted({device.process_index for device in mesh.devices.flat})
    written, held = dict.fromkeys(processes, 0.0), dict.fromkeys(processes, 0.0)
    alike = Counter((tuple(x.shape), np.dtype(x.dtype), x.sharding) for x in jax.tree.leaves(tree))
    for (shape, dtype, place), count in alike.items():
        size = count * math.prod(place.shard_shape(shape)) * dtype.itemsize
        for device, share in written_shares(shape, place).items():
            written[device.process_index] += size * share
            held[device.process_index] += size
    return written, held


def written_shares(shape: tuple[int, ...], place: NamedSharding) -> dict[Any, float]:
    """How much of its shard of an array each device's process writes to a checkpoint.

    Copies of a shard are written in equal parts by all that hold them, where an axis allows, else by the first: which
    is how Orbax shares the work out (`ArrayHandler`, `use_replica_parallel`).
    """
    holders: dict[Any, list[Any]] = {}
    for device, index in place.devices_indices_map(shape).items():
        holders.setdefault(tuple((part.start, part.stop) for part in index), []).append(device)
    written = {}
    for devices in holders.values():
        together = any(axis % len(devices) == 0 for axis in place.shard_shape(shape))
        for i, device in enumerate(devices):
            written[device] = 1 / len(devices) if together else float(i == 0)
    return written


def read_bytes(run: Run, stage: str, cinema: Cinema) -> dict[str, int | None]:
    """What is read from disk or bucket for each example of a stage, by what it is; None: nobody knows its size."""
    data, example = run.config.data, program.abstract_batch(cinema, stage, 1, held_out=True)
    latents, pictures = example["latents"].size, "references" in example
    if data.source == "records":
        # A record is read whole. Its pictures are PNGs of the originals: counted as if they were as large as the VAE
        # sees them, one view of each, color and mask not compressed.
        return {
            "latents in bf16": 2 * latents,
            "references": 4 * data.max_references * math.prod(data.reference_size),
            "texts": 2 * TOKEN_BYTES * run.config.condition.text_tokens,
        }
    read: dict[str, int | None] = {LATENTS: 4 * latents} if STAGES[stage].latents else {}
    return read | ({"reference pictures": None} if data.source == "folder" and pictures else {})


def held_out_bytes(run: Run, stage: str, cinema: Cinema, mesh: Mesh) -> int:
    """Of the held-out batches, at most, which lie on every chip as long as a stage trains; 0: not known."""
    total = 0
    for one in run.buckets:
        split, count, batches = _held_out(one, stage, mesh)
        there = cinema if one.config == run.config else Cinema(one.config, cinema.part_configs)
        example = _nbytes(program.abstract_batch(there, stage, 1, held_out=True)) if count else 0
        # One more for each thing that they are told.
        batches += len(KINDS) if STAGES[stage].told else 0
        total += batches * count * example // (sharding.batch_parts(mesh) if split else 1)
    return total


def _held_out(run: Run, stage: str, mesh: Mesh) -> tuple[bool, int, int]:
    """Whether a held-out batch splits over the mesh, its size, and how many there are."""
    videos = run.config.data.validation_videos
    size = min(run.config.of_stage(stage).batch_size, videos)
    return size % sharding.batch_parts(mesh) == 0, size, -(-videos // size) if size else 0


def _latents_file(run: Run, stage: str, cinema: Cinema) -> float | None:
    """GiB of what `training.latents` keeps; 0 where there is no such file."""
    size = read_bytes(run, stage, cinema).get(LATENTS)
    if size is None:
        return 0.0
    videos = run.config.data.train_videos
    return videos * size / GIB if videos else None


def _random_parts(run: Run, stage: str, cinema: Cinema, trained: Iterable[str]) -> tuple[set[str], list[str]]:
    """The parts whose numbers are drawn when the stage starts, and what `train` says of it."""
    before = run.config.stages[: run.config.stages.index(stage)] if stage in run.config.stages else ()
    patterns = [pattern for name in before for pattern in run.config.of_stage(name).trainable]
    made = {path.split("/")[0] for path in cinema.shapes if any(re.fullmatch(p, path) for p in patterns)}
    random = {name for name in cinema.part_configs if name not in made and run.folder(name) is None}
    random |= STAGES[stage].afresh(run.config) & set(cinema.part_configs)
    missing = random - {path.split("/")[0] for path in trained}
    if not missing:
        return random, []
    # The weights are not there yet; of what will be named, nobody publishes the AlignerNet.
    named = ", ".join(name for name in cinema.part_configs if name in missing)
    return random & {"aligner"} - missing, [
        f"train will ask for the weights of {named} (config.init or config.weights); counted as if they were named"
    ]


def _notes(run: Run, stage: str, mesh: Mesh) -> list[str]:
    config, parts = run.config.of_stage(stage), sharding.batch_parts(mesh)
    rows, (split, held_out, _) = config.batch_size // config.microbatches, _held_out(run, stage, mesh)
    notes = []
    if rows % parts:
        notes.append(f"microbatches of {rows} rows do not split over {parts}: chips compute more than their own rows")
    if held_out and not split:
        notes.append(
            f"held-out batches of {held_out} do not split over {parts}: every chip holds and computes all of them; "
            f"config.data.validation_videos = {-(-held_out // parts) * parts} would split"
        )
    return notes


def _nbytes(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(x.size * x.dtype.itemsize for x in shapes.values())


def _gib(sizes: Mapping[str, int | float]) -> dict[str, float]:
    return {name: size / GIB for name, size in sizes.items() if size}
