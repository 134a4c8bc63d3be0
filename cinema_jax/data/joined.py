"""Several folders of records as one source: those of buckets, and of the phases before the main one."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import BFloat16, UInt8

from cinema_jax.data.example import ClipTexts, Conditions
from cinema_jax.data.records import BUCKETS, Records, VideoLatents
from cinema_jax.data.worker import bucket_of
from cinema_jax.inputs.files import read_json


class Joined:
    """Several folders' records, one after the other, as one source."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = tuple(parts)
        self._sizes = tuple(map(len, parts))

    def __len__(self) -> int:
        return sum(self._sizes)

    def _at(self, index: int) -> tuple[Records, int]:
        part, row = bucket_of(self._sizes, index)
        return self._parts[part], row

    def id(self, index: int) -> str:
        part, row = self._at(index)
        return part.id(row)

    def group(self, index: int) -> str:
        part, index = self._at(index)
        return part.group(index)

    def texts(self) -> list[ClipTexts] | None:
        """Of all examples; None where some folder does not say."""
        found = [part.texts() for part in self._parts]
        return None if None in found else list(itertools.chain.from_iterable(found))

    def video(self, index: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """Raises `InputError`: there is none."""
        part, row = self._at(index)
        return part.video(row)

    def frame(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        """Raises `InputError`: there is none."""
        return self.video(index)[0]

    def caption(self, index: int) -> str:
        """The detailed description of video `index`."""
        part, row = self._at(index)
        return part.caption(row)

    def conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        """What the folder of video `index` gives."""
        part, row = self._at(index)
        return part.conditions(row, rng)

    @property
    def latents(self) -> "VideoLatents":
        """Of every example."""
        return VideoLatents(self)

    def read_latents(self, index: int) -> BFloat16[np.ndarray, "F H W C"]:
        """Of example `index`."""
        part, row = self._at(index)
        return part.read_latents(row)

    def check_vae(self, vae: str) -> None:
        """Raises `InputError` if another VAE made any of the latents."""
        for part in self._parts:
            part.check_vae(vae)


def open_records(folders: Sequence[str], *, of_bucket: bool, **settings: Any) -> Records | Joined:
    """The records of a folder, or of several; of buckets those that `prepare` found clips for.

    Raises `InputError` as `Records` does; `settings` are its own.
    """
    there = [folder for folder in folders if not (of_bucket and _is_empty(epath.Path(folder)))]
    found = [Records(folder, of_bucket=of_bucket, **settings) for folder in there]
    return found[0] if len(folders) == len(found) == 1 else Joined(found)


def _is_empty(folder: epath.Path) -> bool:
    """Whether `prepare` has found no clip for a bucket; older versions refused such buckets and have no list."""
    told = folder.parent / BUCKETS
    return told.exists() and read_json(told).get(folder.name) == 0
