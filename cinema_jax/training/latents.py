"""Latents of a source's videos, encoded once and kept on disk, so that no training step decodes or encodes video."""

import dataclasses
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cinema_jax import distributed, parts
from cinema_jax.data.example import Source
from cinema_jax.errors import InputError
from cinema_jax.training import watchdog
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
    source: Source,
    count: int,
    encode: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    folder: Path,
    name: str,
    key: object,
    *,
    batch_size: int = 8,
    threads: int = 2,
) -> Latents:
    """The latents of the first `count` videos of `source` (0: all), read from `folder` where they were made before.

    Args:
        encode: uint8 clips [batch_size frames height width 3] to latents.
        shape: of one video's latents.
        name: what the progress bar and the file are called.
        key: anything that the latents depend on beside the source's order (VAE digest, sizes).

    A video that cannot be read is left out, named in the log and in the file beside the latents. Each of several
    processes encodes a share, and process 0 joins them: the file is the same for any number of them.
    """
    count = min(count or len(source), len(source))
    ids = [source.id(index) for index in range(count)]
    distributed.agree(f"the {name} data", ids)
    salt = hashlib.sha256(json.dumps([ids, key, shape], default=str).encode()).hexdigest()[:16]
    file, notes = folder / f"{name}-{salt}.npy", folder / f"{name}-{salt}.json"
    if not distributed.gather(notes.exists())[0]:
        folder.mkdir(parents=True, exist_ok=True)
        told = distributed.gather(_encode_share(source, count, encode, shape, file, name, batch_size, threads))
        kept = [index for indices, _ in told for index in indices]
        rejected = {identity: reason for _, reasons in told for identity, reason in reasons.items()}
        check_unreadable(rejected, count, f"{name} videos")
        if not kept:
            raise InputError(f"the only {name} video cannot be read: {next(iter(rejected.values()))}")
        if distributed.is_first():
            _join(file, [len(indices) for indices, _ in told])
            notes.write_text(json.dumps({"indices": kept, "rejected": rejected}))
        distributed.together(f"{name} is encoded")
    found = json.loads(notes.read_text())
    for identity, reason in found["rejected"].items():
        logger.warning("%s is left out: %s", identity, reason)
    return Latents(found["indices"], np.load(file, mmap_mode="r"))


def _share(file: Path, process: int) -> Path:
    """Where a process leaves what it has encoded: process 0 where all of it will lie."""
    return file.with_suffix(f".{process}.partial" if process else ".partial")


def _encode_share(
    source: Source,
    count: int,
    encode: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    file: Path,
    name: str,
    batch_size: int,
    threads: int,
) -> tuple[list[int], dict[str, str]]:
    """Encode this process's share of the videos; returns which could be read, and what is wrong with the others."""
    process, processes = jax.process_index(), jax.process_count()
    mine = range(count * process // processes, count * (process + 1) // processes)
    # Process 0 has room for those of all; an empty file cannot be mapped.
    rows = max(1, len(mine)) if process else count
    values = np.lib.format.open_memmap(_share(file, process), mode="w+", dtype=np.float32, shape=(rows, *shape))
    kept, rejected = [], {}
    for indices, clips in _clips(source, mine, batch_size, threads, name, rejected) if mine else ():
        watchdog.begin(f"encoding {name} videos from number {indices[0]} on")
        # The last batch is filled up, so that the encoder is compiled for one shape only.
        padded = np.concatenate([clips, np.repeat(clips[-1:], batch_size - len(clips), axis=0)])
        values[len(kept) : len(kept) + len(clips)] = np.asarray(encode(padded))[: len(clips)]
        kept += indices
    values.flush()
    watchdog.begin(f"waiting for the {name} videos of the other hosts")
    return kept, rejected


def _join(file: Path, counts: Sequence[int]) -> None:
    """One file of the shares of all processes, which have encoded so many videos each."""
    values, end = np.load(_share(file, 0), mmap_mode="r+"), counts[0]
    for process, size in enumerate(counts[1:], 1):
        values[end : end + size] = np.load(_share(file, process), mmap_mode="r")[:size]
        _share(file, process).unlink()
        end += size
    values.flush()
    _share(file, 0).rename(file)


def _clips(
    source: Source, wanted: range, batch_size: int, threads: int, name: str, rejected: dict[str, str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Batches of readable clips in order, the next one being made while the last is encoded."""

    def video(index: int) -> np.ndarray | InputError:
        try:
            return source.video(index)
        except InputError as error:
            return error

    chunks = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(wanted), desc=f"encode {name}", unit="video") as bar:
        for results in read_ahead(pool, lambda index: (index, video(index)), chunks):
            rejected |= {source.id(i): str(clip) for i, clip in results if isinstance(clip, InputError)}
            clips = {i: clip for i, clip in results if not isinstance(clip, InputError)}
            if clips:
                yield list(clips), np.stack(list(clips.values()))
            bar.update(len(results))


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Item], Result], chunks: Iterable[Iterable[Item]]
) -> Iterator[list[Result]]:
    """What is read of each chunk, the next one being read while the last is in use."""
    waiting: deque[Iterator[Result]] = deque()
    for chunk in chunks:
        waiting.append(pool.map(read, chunk))
        if len(waiting) > 1:
            yield list(waiting.popleft())
    if waiting:
        yield list(waiting.popleft())


def vae_key(digest: str, config: Any) -> str:
    """A name for a VAE with these weights (`checkpoint.digest`) and this config, on which latents depend."""
    published = parts.kind_of("vae", config).config_to_hf(config)
    return hashlib.sha256(json.dumps([digest, published], sort_keys=True).encode()).hexdigest()[:16]
