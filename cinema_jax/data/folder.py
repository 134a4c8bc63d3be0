"""A user's own clips: a folder with a `manifest.jsonl`, as a `Source`."""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.buckets import Bucket, choose, probe_all
from cinema_jax.data.choices import Split, choose_views, ends_of, entries_of_split, groups_of, held_out, position
from cinema_jax.data.example import ClipTexts, Conditions, Reference
from cinema_jax.data.images import check_aspect, read_image, read_mask, with_margin
from cinema_jax.data.manifest import Entry, ReferenceEntry, manifest_file, read_manifest
from cinema_jax.data.video import VideoInfo, frame_at, probe, read_frames
from cinema_jax.errors import InputError

logger = logging.getLogger(__name__)


class Folder:
    """Clips, captions and references described by one JSON object a line of `manifest.jsonl`:

    ```
    {"video": "clip.mp4", "start": 1.5, "end": 3.0, "id": "optional", "group": "optional",
     "caption": "...", "prompt": "... (optional)",
     "references": [{"image": "ref.png", "mask": "m.png", "subject": "a", "noun": "dog"},
                    {"video": "other.mp4", "frame": 12, "box": [x0, y0, x1, y1], "subject": "a"}]}
    ```

    Only `video` and `caption` are required (in a reference: `subject`, and `image` or `video` with `frame`). The prompt
    defaults to the caption. References of one `subject` are views of one entity: an example shows one of them.

    Held out are whole videos, or whole groups where a clip names its own. A clip that is longer than needed gives some
    part of it, always the same one, which its id decides; a held-out clip gives its beginning.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frames: int,
        height: int,
        width: int,
        fps: float | int,
        split: Split = "train",
        validation_fraction: float | int = 0.05,
        max_references: int = 4,
        second_view: float | int = 0.0,
        buckets: Sequence[Bucket] = (),
        bucket: int = 0,
        others: Sequence[int] = (),
        other_view: float | int = 0.0,
        follow_links: bool = False,
        margin: float | int = 0.0,
    ):
        """Checks the whole manifest. Raises `InputError` if anything in it, or an empty split, would stop training.

        Clips are `frames` frames at `fps`, covering `height x width`. `validation_fraction` of the groups, chosen by
        their hash (so they stay when the folder grows), are validation. `second_view`: probability that
        an entity with several views is shown by two of them, as long as `max_references` allows. With `buckets` only
        clips that belong to number `bucket` of them, or to one of the `others`, are there, perhaps none; the videos'
        headers are read for that. `other_view`: see `choices.choose_views`.
        `follow_links`: see `read_manifest`. `margin`: how much more than its box a reference shows on each side, as a
        share of the box's sides.
        """
        if not 0 <= second_view <= 1:
            raise InputError(f"second_view is {second_view}; it must be a probability between 0 and 1")
        self._frames, self._height, self._width, self._fps = frames, height, width, fps
        self._max_references, self._second_view, self._margin = max_references, second_view, margin
        self._other_view = other_view
        entries = read_manifest(path, max([max_references, *(each.references for each in buckets)]), follow_links)
        # What is too short for one bucket may do for another, and is counted where it does for none.
        for entry in () if buckets else entries:
            _check_length(manifest_file(path), entry, frames, fps)
        groups = groups_of(entries)
        if validation_fraction > 0 and len({entry.group for entry in entries}) == 1 < len(entries):
            logger.warning(
                'all %d clips are of one video or group, "%s": those of them that are held out are like the others',
                len(entries),
                entries[0].group,
            )
        held = held_out(path, groups, validation_fraction, split)
        self._file, self.ends = manifest_file(path), ends_of(groups)
        self._root = self._file.parent.resolve()
        self._groups = dict(zip((entry.id for entry in entries), groups, strict=True))
        self._held = frozenset(name for name, group in self._groups.items() if group in held)
        self._entries = entries_of_split(path, entries, groups, held, split)
        if buckets:
            self._entries = _of_buckets(self._entries, buckets, (bucket, *others), fps)

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, index: int) -> str:
        return self._entries[index].id

    def group(self, index: int) -> str:
        """With which others example `index` is held out."""
        return self._groups[self._entries[index].id]

    def texts(self) -> list[ClipTexts]:
        """Of all examples."""
        file = str(self._file)
        return [
            ClipTexts(file, each.line, each.id, each.caption, each.prompt, len({x.subject for x in each.references}))
            for each in self._entries
        ]

    def content(self, index: int) -> list:
        """All that the frames of `video(index)` follow from: they change only where this does."""
        entry = self._entries[index]
        file = entry.video.stat()
        where = [os.path.relpath(entry.video, self._root), file.st_size, file.st_mtime_ns]
        cut = [entry.id, entry.start, entry.end, entry.id in self._held]
        return [*where, *cut, self._frames, self._height, self._width, self._fps]

    def video(self, index: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """The clip's frames. Raises `InputError` if the video cannot be read or is too short."""
        entry = self._entries[index]
        return read_frames(entry.video, self._frames, self._fps, self._height, self._width, self._start(entry))

    def _start(self, entry: Entry) -> float:
        """When the frames begin: with the clip if it is held out, else anywhere, in whole frames, where all fit in."""
        if entry.id in self._held:
            return entry.start
        end = probe(entry.video).duration
        spare = (end if entry.end is None else min(entry.end, end)) - entry.start
        # A little slack: lengths are sums of rounded time stamps.
        starts = 1 + max(0, math.floor(spare * self._fps + 0.01) - self._frames)
        return entry.start + int(position(f"{entry.id} start") * starts) / self._fps

    def frame(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        """A random frame of the clip."""
        video = self.video(index)
        return video[rng.integers(len(video))]

    def caption(self, index: int) -> str:
        """The detailed description of video `index`."""
        return self._entries[index].caption

    def conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        """Caption, prompt and a random view of each subject, in the order that `choose_views` says.

        Raises `InputError` if a reference cannot be read.
        """
        entry = self._entries[index]
        subjects = [reference.subject for reference in entry.references]
        nouns = [reference.noun for reference in entry.references]
        same_clip = [reference.same_clip for reference in entry.references]
        chosen = choose_views(
            entry.prompt, subjects, nouns, self._max_references, self._second_view, rng, same_clip, self._other_view
        )
        references = tuple(_read_reference(entry.references[i], self._margin) for i in chosen)
        return Conditions(entry.caption, entry.prompt, references)

    def references(self, index: int) -> tuple[Reference, ...]:
        """All views of all subjects, in the manifest's order. Raises `InputError` if one cannot be read."""
        return tuple(_read_reference(reference, self._margin) for reference in self._entries[index].references)

    def prompt(self, index: int) -> str:
        """What the multimodal model reads with video `index`."""
        return self._entries[index].prompt


def _of_buckets(
    entries: Sequence[Entry], buckets: Sequence[Bucket], wanted: Sequence[int], fps: float | int
) -> tuple[Entry, ...]:
    """The clips of some buckets. One that cannot be read is in the first, where reading it says what is wrong."""
    found, unfit = [], []
    for entry, info in zip(entries, probe_all([entry.video for entry in entries]), strict=True):
        place = 0 if info is None else _bucket_of(entry, info, buckets, fps)
        if place is None:
            unfit.append(entry)
        elif place in wanted:
            found.append(entry)
    if unfit and 0 in wanted:
        logger.warning(
            "%d of %d clips fit no bucket of %s, being too short or of too many subjects, and are left out there: %s",
            len(unfit),
            len(entries),
            ", ".join(bucket.name for bucket in buckets),
            ", ".join(entry.id for entry in unfit[:10]) + (", ..." if len(unfit) > 10 else ""),
        )
    return tuple(found)


def _bucket_of(entry: Entry, info: VideoInfo, buckets: Sequence[Bucket], fps: float | int) -> int | None:
    seconds = (info.duration if entry.end is None else min(entry.end, info.duration)) - entry.start
    # Half a frame of slack: the last frame need only begin before the end. A picture is read as a video of one frame
    # and of next to no duration.
    frames = max(1.0, seconds * fps + 0.5) if seconds > 0 else 0.0
    subjects = len({reference.subject for reference in entry.references})
    return choose(buckets, info.height, info.width, frames, subjects)


def _check_length(path: Path, entry: Entry, frames: int, fps: float | int) -> None:
    # Half a frame of slack: the last frame need only begin before the end.
    needed = (frames - 0.5) / fps
    if entry.end is not None and entry.end - entry.start < needed:
        raise InputError(
            f'{path}:{entry.line}: "start" {entry.start:g} to "end" {entry.end:g} is '
            f"{entry.end - entry.start:.2f} s; {frames} frames at {fps:g} a second need {needed:.2f} s"
        )


def _read_reference(entry: ReferenceEntry, margin: float) -> Reference:
    background = True
    if entry.image is not None:
        picture = read_image(entry.image)
        image, mask, name = picture.image, picture.mask, str(entry.image)
        # What lies under transparency is nothing that anybody meant to show.
        background = mask is None
    else:
        image, mask, name = frame_at(entry.video, entry.frame), None, f"{entry.video} frame {entry.frame}"
    if entry.mask is not None:
        mask = read_mask(entry.mask)
        if mask.shape != image.shape[:2]:
            raise InputError(f"{entry.mask}: the mask is {_size(mask)}, but its image {entry.image} is {_size(image)}")
    if entry.box is not None:
        x0, y0, x1, y1 = entry.box
        if x1 > image.shape[1] or y1 > image.shape[0]:
            raise InputError(f"{name}: box {list(entry.box)} does not fit into the picture, which is {_size(image)}")
        x0, y0, x1, y1 = with_margin(entry.box, image.shape[1], image.shape[0], margin)
        image, mask = image[y0:y1, x0:x1], None if mask is None else mask[y0:y1, x0:x1]
        if mask is not None and not mask.any():
            raise InputError(f"{name}: box {list(entry.box)} holds nothing of the subject's mask")
        check_aspect(name, image.shape[1], image.shape[0])
    return Reference(np.ascontiguousarray(image), mask, entry.subject, entry.noun, background, entry.same_clip)


def _size(layer: np.ndarray) -> str:
    return f"{layer.shape[1]}x{layer.shape[0]}"
