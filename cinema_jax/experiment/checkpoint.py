"""Checkpoints of a train state: saved in the background, restored onto any mesh.

A checkpoint `<directory>/<step>/` holds the `TrainState` and a JSON description (config, stage, position of the data,
and the provenance and digests of the frozen parts, which are not in it). Orbax writes it under a temporary name;
`commit_success.txt` is its last file, and a step without it does not exist for us.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from cinema_jax.devices import distributed
from cinema_jax.devices.sharding import path_name
from cinema_jax.errors import InputError, fault_of
from cinema_jax.experiment import checksums
from cinema_jax.inputs.files import read_json
from cinema_jax.inputs.typed import checked, section
from cinema_jax.weights.stored import Stored, open_stored, tree_names

logger = logging.getLogger(__name__)

# Of a checkpoint's description: the sums of its arrays (see `checksums`), by their paths.
SUMS = "sums"
# The variable of the environment that, as 0, keeps them from being compared.
VERIFY = "CINEMA_VERIFY_CHECKPOINTS"
# Differences named in one error message; a wrong model differs everywhere.
MAX_LISTED = 12


@runtime_checkable
class Stepped(Protocol):
    """Whatever is saved: a tree of arrays that knows its step."""

    step: Any


class CheckpointError(InputError):
    """A checkpoint that is not there, or does not fit what it should be restored into."""


def is_complete(path: epath.PathLike) -> bool:
    """Whether the folder of a step was written to its end."""
    needed = ("commit_success.txt", "_CHECKPOINT_METADATA", "state/commit_success.txt", "state/_METADATA")
    return all((epath.Path(path) / name).is_file() for name in needed)


def complete_steps(directory: epath.PathLike) -> list[int]:
    """The steps of the complete checkpoints in `directory`, in order; none if there is no such folder."""
    directory = epath.Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and is_complete(path))


def digest(arrays: Mapping[str, Any]) -> str:
    """The sha256 of named arrays of this process (paths, types, shapes and values; their order does not matter)."""
    result = hashlib.sha256()
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        result.update(json.dumps([path, str(array.dtype), array.shape]).encode())
        # bfloat16 has no buffer of its own.
        result.update(array.reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def read_metadata(path: epath.PathLike) -> dict[str, Any]:
    """The JSON description that was saved with the checkpoint at `path` (the folder of a step)."""
    return {name: value for name, value in _described(path).items() if name != SUMS}


def _described(path: epath.PathLike) -> dict[str, Any]:
    """What was saved with the checkpoint, the sums of its arrays among it. Raises `CheckpointError`: it is damaged."""
    file = epath.Path(path) / "_CHECKPOINT_METADATA"
    try:
        return checked(read_json(file, finite=False).get("custom_metadata"), dict[str, Any], f"{file}: custom_metadata")
    except InputError as error:
        raise CheckpointError(str(error)) from None


def find_damage(path: epath.PathLike, branch: str = "") -> str | None:
    """What is wrong with the checkpoint at `path` (the folder of a step), in one sentence; None where nothing is.

    Reads all arrays once, or those of a branch ("ema"), and compares them with the sums that were saved with them;
    several processes share the work, and all must call this. Checkpoints of before have no sums: theirs are only read.
    With CINEMA_VERIFY_CHECKPOINTS=0 in the environment nothing but the description is.
    """
    try:
        return _first(_damage_of_share(epath.Path(path), branch))
    except InputError as error:
        return _first(str(error))


def _first(said: str | None) -> str | None:
    """The first thing that any process says is wrong."""
    return next((each for each in distributed.gather(said) if each), None)


def _damage_of_share(path: epath.Path, branch: str) -> str | None:
    sums = checked(_described(path).get(SUMS, {}), dict[str, tuple[int, int]], f"{path}: {SUMS}")
    names = {"/".join(name) for name in tree_names(path / "state")}
    if sums and (other := sorted(names ^ set(sums))):
        return f"{path}: its list of arrays is damaged ({other[0]})"
    for file in sorted((path / "state" / "array_metadatas").glob("process_*")):
        _check_notes(file)
    if os.environ.get(VERIFY) == "0":
        return None
    arrays = open_stored(path / "state", (branch,) if branch else ())
    # The largest first, one after another to each process: so they are done at about the same time.
    ordered = sorted(arrays, key=lambda name: (-arrays[name].nbytes, name))
    for name in ordered[jax.process_index() :: jax.process_count()]:
        whole = f"{branch}/{name}" if branch else name
        found = checksums.of_pieces(arrays[name].pieces())
        if sums and found != sums[whole]:
            return f"{path}: {whole} is damaged (it has other bits than were saved)"
    return None


def _check_notes(file: epath.Path) -> None:
    """Whether a process's notes of its arrays are as Orbax expects them, which does not end well with others."""
    for row in checked(read_json(file).get("array_metadatas"), list[dict[str, Any]], f"{file}: array_metadatas"):
        for name, kind in (("param_name", str), ("write_shape", list[int]), ("chunk_shape", list[int])):
            checked(section(row, "array_metadata").get(name), kind, f"{file}: {name}")


class Checkpoints:
    """The checkpoints of one run. Every process must call every method; close it (or use `with`) to finish saving.

    Args:
        directory: where the steps lie, on disk or `gs://`; made if missing.
        keep: how many of the last checkpoints are kept.
        keep_every: those whose step is a multiple of this are kept as well; 0: none.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int = 3, keep_every: int = 0):
        if keep < 1:
            raise ValueError(f"keep = {keep} checkpoints must be 1 or more")
        self.directory = _absolute(directory)
        self._last: int | None = None
        # What was read, until it is handed on.
        self._loaded: tuple[Stepped, ...] = ()
        self._set_incomplete_aside()
        # Read once: with several processes, one may already be replacing a step when another looks.
        self._found = frozenset(complete_steps(self.directory))
        policies = ocp.training.preservation_policies
        policy = policies.LatestN(keep)
        if keep_every:
            policy = policies.AnyPreservationPolicy([policy, policies.EveryNSteps(keep_every)])
        self._orbax = ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=True
        )

    def _set_incomplete_aside(self) -> None:
        """Rename half-written steps (a copy that was interrupted): Orbax would count and offer them."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in sorted(self.directory.iterdir()):
                if path.name.isdecimal() and path.is_dir() and not is_complete(path):
                    logger.warning("checkpoint %s is incomplete: renamed to %s.incomplete", path, path.name)
                    path.rename(path.with_name(f"{path.name}.incomplete"))
        distributed.together("checkpoint.open")

    @property
    def latest(self) -> int | None:
        """The step of the last complete checkpoint, as process 0 finds it."""
        return distributed.gather(max(complete_steps(self.directory), default=None))[0]

    def save(self, state: Stepped, metadata: Mapping[str, Any]) -> None:
        """Start saving `state` at its step, after any save before it; returns once the state may be donated.

        `metadata` is anything JSON can say. Saving the same step twice does nothing; a step that another run left here
        is replaced.
        """
        step = int(state.step)
        if step == self._last:
            return
        self._orbax.wait()
        description = json.loads(json.dumps(metadata)) | {SUMS: _sums(state)}
        self._orbax.save_checkpointables_async(
            step,
            {"state": state},
            force=True,
            overwrite=step in self._found,
            custom_metadata=description,
        )
        self._last = step

    def restore(self, abstract: Stepped, step: int | None = None) -> tuple[Stepped, dict[str, Any]]:
        """The state and metadata of `step` (default: the last), in the types and shardings of `abstract`.

        A last one that is damaged is set aside, as `<step>.damaged`, with a warning, and the one before it is taken.

        Raises:
            CheckpointError: no such checkpoint, or it is damaged and there is none before it, or its parameters are not
                those of `abstract`, by path.
        """
        path = step_path(self.directory, self.latest if step is None else step)
        while damage := find_damage(path) or self._load(path, abstract):
            before = [] if step is not None else [one for one in complete_steps(self.directory) if one < int(path.name)]
            if not before:
                raise CheckpointError(f"{damage}; there is no other checkpoint to go on from")
            whole = path.with_name(str(before[-1]))
            logger.warning("%s; the run goes on from the checkpoint before it, %s", damage, whole)
            self._set_aside(path, "damaged")
            path = whole
        self._last, (state,) = int(path.name), self._loaded
        self._loaded = ()
        return state, read_metadata(path)

    def _load(self, path: epath.Path, abstract: Stepped) -> str | None:
        """Load a checkpoint; what was wrong with it, as any process says, or None."""
        self._check_fits(path, abstract)
        try:
            with fault_of(f"{path} is damaged", CheckpointError):
                self._loaded = (ocp.load_checkpointables(path, {"state": abstract})["state"],)
        except CheckpointError as error:
            return _first(str(error))
        return _first(None)

    def _set_aside(self, path: epath.Path, why: str) -> None:
        """Give a step another name, under which nobody takes it for a checkpoint."""
        distributed.together("checkpoint.before it is set aside")
        if jax.process_index() == 0:
            aside = path.with_name(f"{path.name}.{why}")
            if aside.exists():
                aside.rmtree()
            path.rename(aside)
        distributed.together("checkpoint.set aside")
        self._found -= {int(path.name)}
        self._orbax.reload()

    def _check_fits(self, path: epath.Path, abstract: Stepped) -> None:
        saved = {name: array.shape for name, array in open_stored(path / "state").items()}
        wanted = _shapes(abstract)
        problems = [f"{name} is missing" for name in wanted if name not in saved]
        problems += [f"{name} is not in this run" for name in saved if name not in wanted]
        problems += [
            f"{name} is {list(saved[name])} there and {list(shape)} here"
            for name, shape in wanted.items()
            if name in saved and saved[name] != shape
        ]
        # Average and moments follow the parameters: name them only where the parameters agree.
        problems = [problem for problem in problems if problem.startswith("params/")] or problems
        if problems:
            more = f" and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
            raise CheckpointError(f"{path} does not fit this run: {'; '.join(problems[:MAX_LISTED])}{more}")

    def wait(self) -> None:
        """Wait until the last save is on disk; an error in the background is raised here."""
        self._orbax.wait()

    def close(self) -> None:
        """Finish saving and let go of the folder."""
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def step_path(directory: epath.PathLike, step: int | None = None) -> epath.Path:
    """The folder of a complete checkpoint: `directory` itself, or its `step` (default: its last).

    Raises:
        CheckpointError: there is none; says which there are.
    """
    directory = _absolute(directory)
    if step is None and is_complete(directory):
        return directory
    steps = complete_steps(directory)
    if not steps or (step is not None and step not in steps):
        asked = "complete checkpoint" if step is None else f"complete checkpoint of step {step}"
        there = f"; there are steps {', '.join(map(str, steps))}" if steps else ""
        raise CheckpointError(f"{directory} holds no {asked}{there}")
    return directory / str(steps[-1] if step is None else step)


def load_params(directory: epath.PathLike, *, ema: bool = True, step: int | None = None) -> dict[str, Stored]:
    """The trained parameters of a checkpoint, {path: array}, not read yet: their moving average, or the last values.

    Args:
        directory: a run's checkpoints, or the folder of one step.
        step: which of them (default: the last that is whole).

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if step is None:
        return newest_params(directory, ema=ema)[1]
    path = step_path(directory, step)
    if damage := find_damage(path, _branch(ema)):
        raise CheckpointError(damage)
    return open_stored(path / "state", (_branch(ema),))


def newest_params(directory: epath.PathLike, *, ema: bool = True) -> tuple[int, dict[str, Stored]]:
    """The step of the last checkpoint that is not damaged, and its parameters as `load_params` gives them.

    Every process must call this. Damaged ones are left where they are, and named in a warning.

    Raises:
        CheckpointError: there is none.
    """
    path = step_path(directory)
    while damage := find_damage(path, _branch(ema)):
        before = [one for one in complete_steps(path.parent) if one < int(path.name)] if path.name.isdecimal() else []
        if not before or path == _absolute(directory):
            raise CheckpointError(damage)
        logger.warning("%s; the one before it is taken, %s", damage, path.with_name(str(before[-1])))
        path = path.with_name(str(before[-1]))
    return int(path.name), open_stored(path / "state", (_branch(ema),))


def _branch(ema: bool) -> str:
    return "ema" if ema else "params"


def _sums(state: Stepped) -> dict[str, checksums.Sums]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = checksums.of_arrays([leaf for _, leaf in leaves])
    return {path_name(path): each for (path, _), each in zip(leaves, sums, strict=True)}


def _absolute(path: epath.PathLike) -> epath.Path:
    # Orbax refuses relative folders; `gs://...` has no current one.
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(keys): tuple(leaf.shape) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
