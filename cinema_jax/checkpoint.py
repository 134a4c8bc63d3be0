"""Checkpoints of a train state: saved in the background, restored onto any mesh.

A checkpoint `<directory>/<step>/` holds the `TrainState` and a JSON description (config, stage, position of the data,
and the provenance and digests of the frozen parts, which are not in it). Orbax writes it under a temporary name;
`commit_success.txt` is its last file, and a step without it does not exist for us.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from cinema_jax import distributed
from cinema_jax.errors import InputError
from cinema_jax.sharding import path_name
from cinema_jax.stored import Stored, open_stored
from cinema_jax.training.state import TrainState

# Differences named in one error message; a wrong model differs everywhere.
MAX_LISTED = 12


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
    return json.loads((epath.Path(path) / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]


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
                    logging.warning("checkpoint %s is incomplete: renamed to %s.incomplete", path, path.name)
                    path.rename(path.with_name(f"{path.name}.incomplete"))
        distributed.together("checkpoint.open")

    @property
    def latest(self) -> int | None:
        """The step of the last complete checkpoint, as process 0 finds it."""
        return distributed.gather(max(complete_steps(self.directory), default=None))[0]

    def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Start saving `state` at its step, after any save before it; returns once the state may be donated.

        `metadata` is anything JSON can say. Saving the same step twice does nothing; a step that another run left here
        is replaced.
        """
        step = int(state.step)
        if step == self._last:
            return
        self._orbax.wait()
        description = json.loads(json.dumps(metadata))
        self._orbax.save_checkpointables_async(
            step,
            {"state": state},
            force=True,
            overwrite=step in self._found,
            custom_metadata=description,
        )
        self._last = step

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The state and metadata of `step` (default: the last), in the types and shardings of `abstract`.

        Raises:
            CheckpointError: no such checkpoint, or its parameters are not those of `abstract`, by path.
        """
        path = step_path(self.directory, self.latest if step is None else step)
        self._check_fits(path, abstract)
        state = ocp.load_checkpointables(path, {"state": abstract})["state"]
        self._last = int(path.name)
        return state, read_metadata(path)

    def _check_fits(self, path: epath.Path, abstract: TrainState) -> None:
        saved, wanted = _shapes(_saved_tree(path)), _shapes(abstract)
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
        step: which of them (default: the last).
    """
    return open_stored(step_path(directory, step) / "state", ("ema" if ema else "params",))


def _absolute(path: epath.PathLike) -> epath.Path:
    # Orbax refuses relative folders; `gs://...` has no current one.
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _saved_tree(path: epath.Path) -> Any:
    return ocp.checkpointables_metadata(path).metadata["state"]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(keys): tuple(leaf.shape) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
