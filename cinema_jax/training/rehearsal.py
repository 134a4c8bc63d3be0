"""A stage's next step with made-up weights: its batch loaded, its program compiled and run, its state saved and read.

What a run of hours does in a small folder of its own, in minutes: no weights are read and no videos encoded.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cinema_jax.cinema import Cinema
from cinema_jax.data.example import EncodedSource, Source
from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.devices import sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import Checkpoints, complete_steps
from cinema_jax.experiment.run import Run
from cinema_jax.training import state
from cinema_jax.training.beginning import check_weights
from cinema_jax.training.optimizer import Optimizer, make_optimizer
from cinema_jax.training.phases import Phase, phases, run_in
from cinema_jax.training.stages import STAGES, make_step
from cinema_jax.training.state import TrainState

# Of made-up weights, small enough that no layer overflows.
SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's share of a batch."""

    step: int
    size: int
    rows: tuple[int, ...]
    arrays: Mapping[str, np.ndarray]
    # The names of all examples of the batch.
    ids: list[str]
    # Records of this process that cannot be read.
    problems: list[str]
    # From the first file that is opened.
    seconds: float


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a step came to; the state after it, and seconds."""

    state: TrainState
    loss: float
    compiling: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Trip:
    """A state that was written and read: bytes of all processes, seconds, and arrays that came back otherwise."""

    bytes: int
    writing: float
    reading: float
    # Paths.
    other: list[str]


class Unencoded(Sequence):
    """Stands for latents that are not made yet: reads the video, and gives zeros of their shape."""

    def __init__(self, source: Source, shape: tuple[int, ...]):
        self._source, self._shape = source, shape

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> np.ndarray:
        self._source.video(row)
        return np.zeros(self._shape, np.float32)


def phases_left(run: Run, stage: str) -> list[tuple[Phase, int]]:
    """The phases of a stage that are not over, each with its next step."""
    done = max(complete_steps(run.workdir / "checkpoints" / stage), default=0)
    done = min(done, run.config.of_stage(stage).steps - 1)
    return [(phase, max(done, phase.first)) for phase in phases(run.config, stage) if phase.end > done]


def next_batch(run: Run, stage: str, mesh: Mesh, phase: Phase, step: int) -> Share:
    """Load this process's rows of a batch of a phase."""
    started = time.perf_counter()
    data, size = run.config.data, phase.batch_size
    mixture = examples(run_in(run, stage, phase), stage)
    seed = state.stage_seed(run.config.seed, stage)
    loading = LoaderConfig(size, seed, num_threads=data.threads, num_workers=data.workers, purpose=phase.purpose)
    make, rows = functools.partial(mixture.make, phase.example), sharding.local_rows(mesh, size)
    loader = Loader(mixture.sizes, make, loading, rows=rows)
    ((_, arrays),) = loader.steps(step, step + 1)
    entries = Loader(mixture.sizes, make, loading).entries(step)
    problems = [f"{mixture.id(row)} cannot be read: {message}" for row, message in loader.failures.items()]
    if list(arrays["index"]) != [step * size + row for row in rows]:
        problems.append(f"the loader gave examples {list(arrays['index'])} for rows {list(rows)} of step {step}")
    ids = [mixture.id(row) for row in entries]
    return Share(step, size, rows, arrays, ids, problems, time.perf_counter() - started)


def examples(run: Run, stage: str) -> Mixture:
    """A stage's training data; of latents that are not made yet, zeros."""
    found, captions = [], run.captions() or ()
    for bucket, source in run.sources("train"):
        preprocessor = bucket.preprocessor()
        if not STAGES[stage].latents:
            found.append(Examples(source, preprocessor, range(len(source)), captions=captions))
            continue
        count = min(bucket.config.data.train_videos or len(source), len(source))
        latents = source.latents if isinstance(source, EncodedSource) else Unencoded(source, _latents(bucket, stage))
        found.append(Examples(source, preprocessor, range(count), latents))
    return Mixture(tuple(found))


def _latents(run: Run, stage: str) -> tuple[int, ...]:
    """The shape of one video's."""
    data, cinema = run.config.data, networks(run, stage)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), np.uint8)
    return jax.eval_shape(cinema.encode_video, cinema.shapes, clip).shape[1:]


def networks(run: Run, stage: str) -> Cinema:
    """Those that a stage needs."""
    return Cinema(run.config, run.part_configs(STAGES[stage].needed(run.config)))


def _abstract(run: Run, stage: str, mesh: Mesh) -> tuple[Cinema, Optimizer, dict[str, Any], dict[str, Any]]:
    """The networks, the optimizer, and shapes of trained and of frozen parameters on the mesh."""
    cinema, config = networks(run, stage), run.config.of_stage(stage)
    trained, frozen = STAGES[stage].trained(run.config, cinema.shapes)
    origins = {name: "random" if run.folder(name) is None else "there" for name in cinema.part_configs}
    check_weights(stage, origins, trained)

    params = {path: jax.ShapeDtypeStruct(cinema.shapes[path].shape, cinema.state_dtype) for path in trained}
    held = jax.eval_shape(cinema.held, {path: cinema.shapes[path] for path in frozen})
    optimizer = make_optimizer(config.optimizer, config.steps, config.earlier_rates)
    return cinema, optimizer, sharding.abstract(params, mesh), sharding.abstract(held, mesh, WEIGHTS)


def state_bytes(run: Run, stage: str, mesh: Mesh) -> int:
    """Of a checkpoint: parameters, averages and moments."""
    _, optimizer, params, _ = _abstract(run, stage, mesh)
    return _bytes(state.abstract(params, optimizer, mesh))


def take_step(run: Run, stage: str, mesh: Mesh, share: Share) -> Taken:
    """Compile a stage's step for a batch, and take it twice: the first one finds its place in memory."""
    cinema, optimizer, params, frozen = _abstract(run, stage, mesh)
    current = state.create(_weights(params), optimizer, mesh, seed=state.stage_seed(run.config.seed, stage))
    frozen, batch = _weights(frozen), sharding.global_batch(share.arrays, mesh, share.size)
    step = make_step(STAGES[stage], cinema, optimizer, current)
    try:
        started = time.perf_counter()
        program = step.lower(current, frozen, batch).compile()
        compiling = time.perf_counter() - started
        current, _ = jax.block_until_ready(program(current, frozen, batch))
        started = time.perf_counter()
        current, values = jax.block_until_ready(program(current, frozen, batch))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"the step of {stage} does not fit into the devices: {str(error).splitlines()[0]}") from None
    return Taken(current, float(values["loss"]), compiling, time.perf_counter() - started)


def _weights(shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Made up on the devices, each its own share: waves, as random numbers of all shapes take minutes to compile."""

    def wave(phase: int, x: Any) -> jax.Array:
        places = (jax.lax.broadcasted_iota(jnp.float32, x.shape, axis) * (0.7 + axis) for axis in range(len(x.shape)))
        return (SCALE * jnp.sin(sum(places, jnp.float32(phase)))).astype(x.dtype)

    def make():
        return {path: wave(phase, x) for phase, (path, x) in enumerate(shapes.items())}

    return jax.jit(make, out_shardings={path: x.sharding for path, x in shapes.items()})()


def round_trip(current: TrainState, folder: Path) -> Trip:
    """Save a state, let go of it, restore it and compare it bit for bit with a copy in the host's memory."""
    size, before = _bytes(current), _shares(current)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), current)
    with Checkpoints(folder, keep=1) as checkpoints:
        started = time.perf_counter()
        checkpoints.save(current, {})
        checkpoints.wait()
        writing = time.perf_counter() - started
        # There may be no room for two.
        jax.tree.map(lambda x: x.delete(), current)
        started = time.perf_counter()
        restored, _ = checkpoints.restore(like)
        jax.block_until_ready(restored)
        reading = time.perf_counter() - started
    after = _shares(restored)
    other = sorted({path for path, index in before if before[path, index] != after.get((path, index))})
    return Trip(
        size, writing, reading, [f"{len(other)} arrays came back otherwise: {', '.join(other[:3])}"] if other else []
    )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shares(tree: Any) -> dict[tuple[str, str], bytes]:
    """What this process's devices hold, each slice once: by path and place in the array."""
    return {
        (sharding.path_name(keys), str(shard.index)): np.asarray(shard.data).tobytes()
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        for shard in leaf.addressable_shards
    }
