"""Latents of a source's videos, encoded once and kept on disk, so that no training step decodes or encodes video."""

import dataclasses
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cinema_jax.data.example import VideoSource
from cinema_jax.data.worker import ClipReader, Workers
from cinema_jax.devices import distributed, watchdog
from cinema_jax.errors import InputError, fault_of
from cinema_jax.experiment import parts
from cinema_jax.inputs.files import MOST_OF_LIST
from cinema_jax.inputs.typed import checked
from cinema_jax.training.watch import check_unreadable

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Latents:
    """Encoded videos: row `i` is the latents of the source's example `indices[i]`."""

    indices: Sequence[int]
    values: Float[np.ndarray, "videos F H W C"]


def encode_all(
    source: VideoSource,
    count: int,
    encode: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    folder: Path,
    name: str,
    key: object,
    *,
    batch_size: int = 8,
    threads: int = 2,
    workers: int = 0,
) -> Latents:
    """The latents of the first `count` videos of `source` (0: all), read from `folder` where they were made before.

    Args:
        encode: uint8 clips [batch_size frames height width 3] to latents.
        shape: of one video's latents.
        name: what the progress bar and the file are called.
        key: anything that the latents depend on beside the videos' content: the VAE's digest.
        threads: that read videos; or, if there are any, `workers`: processes, for videos whose making holds Python's
            lock. Neither changes what is made.

    A file holds all of them, in the source's order, and is found by what every one was made of. Where some have changed
    the others are copied from the files that have them. A video that cannot be read is left out, named in the log and
    in the notes beside the latents. Each of several processes encodes a share, and process 0 joins them: the file is
    the same for any number of them.
    """
    count = min(count or len(source), len(source))
    distributed.agree(f"the {name} data", [source.id(index) for index in range(count)])
    # Process 0 says what is there: each host may have its own copy of the videos, with other times.
    keys = [_digest([source.content(index), key, shape]) for index in range(count)] if distributed.is_first() else []
    salt = distributed.gather(_digest(keys))[0]
    file, notes = folder / f"{name}-{salt}.npy", folder / f"{name}-{salt}.json"
    if not distributed.gather(_notes(file, shape, count) is not None)[0]:
        folder.mkdir(parents=True, exist_ok=True)
        known = _known(folder, shape) if distributed.is_first() else {}
        todo = distributed.gather([index for index, each in enumerate(keys) if each not in known])[0]
        how = batch_size, threads, workers
        told = distributed.gather(_encode_share(source, todo, encode, (count, *shape), file, name, how))
        rejected = {index: reason for unreadable in told for index, reason in unreadable}
        reasons = {source.id(index): reason for index, reason in rejected.items()}
        check_unreadable(reasons, count, f"{name} videos")
        if len(rejected) == count:
            raise InputError(f"the only {name} video cannot be read: {next(iter(reasons.values()))}")
        if distributed.is_first():
            kept = [index for index in range(count) if index not in rejected]
            _join(file, todo, {index: known[each] for index, each in enumerate(keys) if each in known}, kept)
            parts.write_json(notes, {"indices": kept, "keys": [keys[i] for i in kept], "rejected": reasons})
        distributed.together(f"{name} is encoded")
    found = _notes(file, shape, count)
    if found is None:
        raise InputError(f"{file} cannot be read, though it was just written: check the disk, and start again")
    for identity, reason in found.rejected.items():
        logger.warning("%s is left out: %s", identity, reason)
    return Latents(found.indices, np.load(file, mmap_mode="r"))


@dataclasses.dataclass(frozen=True)
class _Notes:
    """What is written beside a file of latents, when that is whole."""

    # Of the source's examples, in the file's order.
    indices: list[int]
    # The source's examples that cannot be read, and why.
    rejected: dict[str, str]
    # What each row was made of; those of older versions have none.
    keys: list[str] = dataclasses.field(default_factory=list)


def _notes(file: Path, shape: tuple[int, ...], count: int | None = None) -> _Notes | None:
    """What is known of a file of latents; None where it is not there or damaged, so that it is made anew.

    Args:
        shape: of a video's latents. A file of others is None too.
        count: of the source's videos, for the file that has theirs.
    """
    notes = file.with_suffix(".json")
    if not notes.exists():
        return None
    try:
        found = checked(parts.read_json(notes, MOST_OF_LIST), _Notes, f"{notes}: ")
        with fault_of(f"{file} is damaged"):
            values = np.load(file, mmap_mode="r")
        fits = values.dtype == np.float32 and values.shape[1:] == tuple(shape)
        if not fits and count is None:
            return None
        if not fits or len(values) < len(found.indices):
            raise InputError(f"{file} holds {values.shape}, not {len(found.indices)} times {shape}")
        if found.keys and len(found.keys) != len(found.indices):
            raise InputError(f"{notes} has {len(found.keys)} keys of {len(found.indices)} videos")
        if count is not None and not set(found.indices) <= set(range(count)):
            raise InputError(f"{notes} names videos that are not there")
    except InputError as error:
        logger.warning("%s; what it held is encoded again", error)
        return None
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _known(folder: Path, shape: tuple[int, ...]) -> dict[str, tuple[Path, int]]:
    """The latents of such a shape that lie in the folder: of each key the file and the row."""
    known: dict[str, tuple[Path, int]] = {}
    for file in sorted(folder.glob("*.npy")):
        if found := _notes(file, shape):
            known |= {key: (file, row) for row, key in enumerate(found.keys)}
    return known


def _share(file: Path, process: int) -> Path:
    """Where a process leaves what it has encoded: process 0 where all of it will lie."""
    return file.with_suffix(f".{process}.partial" if process else ".partial")


def _of_process(todo: Sequence[int], process: int, processes: int) -> Sequence[int]:
    """Those of the videos that a process encodes."""
    return todo[len(todo) * process // processes : len(todo) * (process + 1) // processes]


def _encode_share(
    source: VideoSource,
    todo: Sequence[int],
    encode: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    file: Path,
    name: str,
    how: tuple[int, int, int],
) -> list[tuple[int, str]]:
    """Encode this process's share of the videos `todo`; returns which cannot be read, and why.

    `how` is batch size, threads and workers.
    Process 0 has room for all videos, [videos F H W C], each in its place; the others for their share.
    """
    process = jax.process_index()
    mine = _of_process(todo, process, jax.process_count())
    row = {index: place if process else index for place, index in enumerate(mine)}
    # An empty file cannot be mapped.
    room = (max(1, len(mine)), *shape[1:]) if process else shape
    rejected: list[tuple[int, str]] = []
    try:
        values = _reserve(_share(file, process), room)
        for indices, clips in _clips(source, mine, name, rejected, *how) if mine else ():
            watchdog.begin(f"encoding {name} videos from number {indices[0]} on")
            # The last batch is filled up, so that the encoder is compiled for one shape only.
            padded = np.concatenate([clips, np.repeat(clips[-1:], how[0] - len(clips), axis=0)])
            values[[row[index] for index in indices]] = np.asarray(encode(padded))[: len(clips)]
        values.flush()
    except BaseException:
        # It would fill the disk until the next start, which makes it anew.
        _share(file, process).unlink(missing_ok=True)
        raise
    watchdog.begin(f"waiting for the {name} videos of the other hosts")
    return rejected


def _reserve(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of 32-bit floats that has all of its place on the disk.

    A mapped file without it is a hole, and a disk that is full ends whoever writes there with a signal (SIGBUS).

    Raises:
        OSError: the disk has no room for it.
    """
    file.unlink(missing_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    try:
        # Where another process puts anything in its place, a link say, this fails.
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), "r+b") as opened:
            np.lib.format.write_array_header_1_0(opened, header)
            opened.flush()
            start = opened.tell()
            os.posix_fallocate(opened.fileno(), start, int(np.prod(shape, dtype=np.int64)) * 4)
            return np.memmap(opened, np.float32, "r+", offset=start, shape=shape)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


def _join(file: Path, todo: Sequence[int], known: Mapping[int, tuple[Path, int]], kept: Sequence[int]) -> None:
    """Bring the others' shares of the videos `todo`, and those `known`, into process 0's file, and close the gaps."""
    values = np.load(_share(file, 0), mmap_mode="r+")
    for process in range(1, jax.process_count()):
        mine = _of_process(todo, process, jax.process_count())
        values[list(mine)] = np.load(_share(file, process), mmap_mode="r")[: len(mine)]
        _share(file, process).unlink()
    files = {where: np.load(where, mmap_mode="r") for where in {where for where, _ in known.values()}}
    for index, (where, row) in known.items():
        values[index] = files[where][row]
    for row, index in enumerate(kept):
        if row != index:
            values[row] = values[index]
    values.flush()
    _share(file, 0).rename(file)


def _clips(
    source: VideoSource,
    wanted: Sequence[int],
    name: str,
    rejected: list[tuple[int, str]],
    batch_size: int,
    threads: int,
    workers: int,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Batches of readable clips in order, the next ones being made while the last is encoded."""
    reader = ClipReader(source)
    chunks = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    # One that waits for a worker costs nothing: two for each keep them busy.
    threads = max(threads, 2 * workers)
    with (
        closing(Workers(reader, workers)) if workers else nullcontext(reader) as read,
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(wanted), desc=f"encode {name}", unit="video") as bar,
    ):
        for results in read_ahead(pool, lambda index: (index, read(index)), chunks, ahead=-(-threads // batch_size)):
            rejected += [(i, str(clip)) for i, clip in results if isinstance(clip, InputError)]
            clips = {i: clip for i, clip in results if not isinstance(clip, InputError)}
            if clips:
                yield list(clips), np.stack(list(clips.values()))
            bar.update(len(results))


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Item], Result], chunks: Iterable[Iterable[Item]], ahead: int = 1
) -> Iterator[list[Result]]:
    """What is read of each chunk, the next `ahead` being read while the last is in use."""
    waiting: deque[Iterator[Result]] = deque()
    for chunk in chunks:
        waiting.append(pool.map(read, chunk))
        if len(waiting) > ahead:
            yield list(waiting.popleft())
    while waiting:
        yield list(waiting.popleft())


def vae_key(digest: str, config: Any) -> str:
    """A name for a VAE with these weights (`checkpoint.digest`) and this config, on which latents depend."""
    published = parts.kind_of("vae", config).config_to_hf(config)
    return hashlib.sha256(json.dumps([digest, published], sort_keys=True).encode()).hexdigest()[:16]
