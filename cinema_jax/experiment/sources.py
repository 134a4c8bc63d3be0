"""The sources of training data, each by the name that `config.data.source` gives it."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cinema_jax.config import DataConfig
from cinema_jax.data.buckets import Bucket
from cinema_jax.data.critters.cutout import find_cutouts, split_cutouts
from cinema_jax.data.critters.source import Critters
from cinema_jax.data.example import Source
from cinema_jax.data.folder import Folder
from cinema_jax.data.images import MARGIN


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a run wants of a source: clips of one split, at the sizes of `data`."""

    # "train", "validation"; "test" for critters only.
    split: str
    data: DataConfig
    # The run's.
    seed: int
    # With `data.buckets`, the one whose shapes `data` has, and others of its size whose clips are wanted too.
    bucket: int | None = None
    others: tuple[int, ...] = ()
    # Folders of these buckets among the records that `prepare` makes; "" where there are no buckets.
    records: tuple[str, ...] = ("",)


def critters(wanted: Wanted) -> Critters:
    """Drawn subjects, or cut-out pictures in their place."""
    data = wanted.data
    cutouts = split_cutouts(find_cutouts(data.subjects), wanted.split) if data.subjects else None
    return Critters(
        wanted.split,
        frames=data.frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        # Each bucket draws scenes of its own.
        seed=wanted.seed + (wanted.bucket or 0),
        max_subjects=data.max_references,
        shares=data.shares,
        cutouts=cutouts,
    )


def folder_clips(wanted: Wanted, manifest: str | Path | None = None) -> Folder:
    """The clips of a manifest, `data.path` if none is named; of one bucket, those that belong to it."""
    data = wanted.data
    return Folder(
        manifest or data.path,
        frames=data.frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        split=wanted.split,
        validation_fraction=data.validation_fraction,
        max_references=data.max_references,
        buckets=() if wanted.bucket is None else [Bucket(*sizes) for sizes in data.buckets],
        bucket=wanted.bucket or 0,
        others=wanted.others,
        other_view=data.other_view,
        follow_links=data.follow_links,
        margin=MARGIN if data.crop_references else 0.0,
    )


def records(wanted: Wanted) -> Source:
    """Clips that `prepare` has encoded."""
    # Imported here: TensorFlow Datasets costs every process 0.2 s and 32 MiB.
    from cinema_jax.data.joined import open_records

    data = wanted.data
    return open_records(
        [os.path.join(data.path, name) for name in wanted.records],
        split=wanted.split,
        of_bucket=wanted.bucket is not None,
        frames=data.frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        max_references=data.max_references,
        validation_fraction=data.validation_fraction,
        other_view=data.other_view,
    )


SOURCES: Mapping[str, Callable[[Wanted], Source]] = {"critters": critters, "folder": folder_clips, "records": records}
