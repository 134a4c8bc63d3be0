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

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cinema_jax import parts
from cinema_jax.data.example import Source
from cinema_jax.errors import InputError
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

    A video that cannot be read is left out, named in the log and in the file beside the latents.
    """
    count = min(count or len(source), len(source))
    ids = [source.id(index) for index in range(count)]
    salt = hashlib.sha256(json.dumps([ids, key, shape], default=str).encode()).hexdigest()[:16]
    file, notes = folder / f"{name}-{salt}.npy", folder / f"{name}-{salt}.json"
    if not notes.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        values = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(count, *shape))
        kept, rejected = [], {}
        for indices, clips in _clips(source, count, batch_size, threads, name, rejected):
            # The last batch is filled up, so that the encoder is compiled for one shape only.
            padded = np.concatenate([clips, np.repeat(clips[-1:], batch_size - len(clips), axis=0)])
            values[len(kept) : len(kept) + len(clips)] = np.asarray(encode(padded))[: len(clips)]
            kept += indices
        check_unreadable(rejected, count, f"{name} videos")
        if not kept:
            raise InputError(f"the only {name} video cannot be read: {next(iter(rejected.values()))}")
        values.flush()
        partial.rename(file)
        notes.write_text(json.dumps({"indices": kept, "rejected": rejected}))
    found = json.loads(notes.read_text())
    for identity, reason in found["rejected"].items():
        logger.warning("%s is left out: %s", identity, reason)
    return Latents(found["indices"], np.load(file, mmap_mode="r"))


def _clips(
    source: Source, count: int, batch_size: int, threads: int, name: str, rejected: dict[str, str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Batches of readable clips in order, the next one being made while the last is encoded."""

    def video(index: int) -> np.ndarray | InputError:
        try:
            return source.video(index)
        except InputError as error:
            return error

    chunks = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    with ThreadPoolExecutor(threads) as pool, tqdm(total=count, desc=f"encode {name}", unit="video") as bar:
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
