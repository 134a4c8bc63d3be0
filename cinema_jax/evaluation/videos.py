"""Videos of an evaluation, kept in a folder so that none is made twice; processes share what is missing."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from cinema_jax.data.example import Reference
from cinema_jax.data.images import open_image
from cinema_jax.devices import distributed
from cinema_jax.errors import InputError, fault_of
from cinema_jax.evaluation.suite import SEED, Case
from cinema_jax.experiment import parts
from cinema_jax.experiment.checkpoint import digest
from cinema_jax.inputs.files import whole_file
from cinema_jax.inputs.typed import checked
from cinema_jax.sampling.many import own_share
from cinema_jax.sampling.requests import Request, Settings
from cinema_jax.sampling.sampler import Sampler

Video = UInt8[np.ndarray, "frames height width 3"]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """A folder of lossless videos, each one PNG with its frames side by side (also a contact sheet)."""

    folder: Path

    def file(self, name: str) -> Path:
        """Where the video of a case lies."""
        return self.folder / f"{name}.png"

    def write(self, name: str, frames: Sequence[UInt8[np.ndarray, "height width 3"]] | np.ndarray) -> None:
        """Keep a video, or a few pictures of one size; complete or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.file(name)) as partial:
            Image.fromarray(np.concatenate(list(frames), axis=1)).save(partial, format="PNG")

    def read(self, name: str, frames: int, height: int, width: int) -> Video:
        """A kept video. Raises InputError if its size is another or the file is damaged."""
        file = self.file(name)
        with fault_of(f"{file} cannot be read, so delete it to have it made anew"), open_image(file) as image:
            if image.size == (frames * width, height):
                pixels = np.asarray(image.convert("RGB"))
            else:
                pixels = np.empty((0, 0, 3), np.uint8)
        if pixels.shape != (height, frames * width, 3):
            raise InputError(f"{self.file(name)} is no video of {frames} frames of {width}x{height}; delete it")
        return np.stack(np.split(pixels, frames, axis=1))


def digests(sampler: Sampler) -> dict[str, str]:
    """The sha256 of each part that generates."""
    names = sorted({path.split("/")[0] for path in sampler.params})
    return {
        name: digest({p: distributed.fetch(x) for p, x in sampler.params.items() if p.startswith(f"{name}/")})
        for name in names
    }


def fingerprint(prompt: str, seed: int, pictures: Iterable[str]) -> str:
    """The sha256 of what a video is asked for; `pictures` are the references' own, in order."""
    return hashlib.sha256(json.dumps([prompt, seed, [*pictures]]).encode()).hexdigest()


def claim(folder: Path, description: dict[str, Any], videos: Mapping[str, str]) -> None:
    """Say in a folder what its videos are made by, and of what: `videos` has the `fingerprint` of each by its name.

    All processes must call this.

    Raises:
        InputError: it holds videos that were made by or of something else, or is no folder that all of them see.
    """
    distributed.agree("the videos that are asked for", [description, dict(videos)])
    distributed.in_first(lambda: _claim(folder, description, videos))
    distributed.check_shared(folder, "--output")


def _claim(folder: Path, description: dict[str, Any], videos: Mapping[str, str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; name a folder for the videos")
    file = folder / "generation.json"
    if file.exists():
        there = parts.read_json(file)
        # Folders of before do not say what theirs were made of.
        known = checked(there.pop("videos", None), dict[str, str] | None, f"{file}: videos")
        description = description | ({"videos": "unknown"} if known is None else {})
        wrong = sorted(name for name in there.keys() | description.keys() if there.get(name) != description.get(name))
        if wrong:
            raise InputError(
                f"{folder} holds videos of another evaluation ({', '.join(wrong)} differ); name a new --output"
            )
        if changed := [name for name in videos if known.get(name, videos[name]) != videos[name]]:
            raise InputError(
                f"{folder} holds {changed[0]} and {len(changed) - 1} more videos of another prompt, other pictures or "
                "another place in the list; name a new --output"
            )
        videos = known | dict(videos)
    folder.mkdir(parents=True, exist_ok=True)
    parts.write_json(file, description | {"videos": dict(videos)})


def requests(cases: Sequence[Case]) -> list[Request]:
    """What is asked for, of each case."""
    return [Request(case.prompt, case.shown, seed=case.index) for case in cases]


def generate(
    sampler: Sampler,
    settings: Settings,
    cases: Sequence[Case],
    folder: Path,
    batch: int,
    sampler_digests: dict[str, str],
    subjects: Sequence[str] = (),
) -> tuple[list[Video], float]:
    """The video of each case, in order, and the seconds that were spent on making those that were not kept yet.

    `subjects` names those that play instead of critters.
    """
    description = {"suite": "critters", "suite_seed": SEED, "digests": sampler_digests}
    if subjects:
        description["subjects"] = list(subjects)
    prints = {case.id: fingerprint(case.prompt, case.index, map(picture_digest, case.shown)) for case in cases}
    claim(folder, description | {"settings": dataclasses.asdict(settings)}, prints)
    kept, begun = Gallery(folder), time.monotonic()
    asked = dict(zip((case.id for case in cases), requests(cases), strict=True))
    make_missing(sampler, settings, list(asked), asked.__getitem__, kept.file, kept.write, batch)
    size = settings.frames, settings.height, settings.width
    return [kept.read(case.id, *size) for case in cases], time.monotonic() - begun


def make_missing(
    sampler: Sampler,
    settings: Settings,
    names: Sequence[str],
    request: Callable[[str], Request],
    file: Callable[[str], Path],
    write: Callable[[str, Video], object],
    batch: int,
) -> int:
    """Make the videos whose file is not there yet, each by one process and its own devices; how many that are.

    All processes must call this. It returns when all videos are there.
    """
    # Before the first one writes, all know what all have to do.
    missing = distributed.gather([name for name in names if not file(name).exists()])[0]
    starts = list(own_share(range(0, len(missing), batch)))
    for start in tqdm(starts, desc="generate", unit="batch", disable=not starts):
        now = missing[start : start + batch]
        filled = [request(name) for name in now + now[:1] * (batch - len(now))]  # one shape, one compilation
        for name, video in zip(now, sampler(filled, settings), strict=False):
            write(name, video)
    distributed.meet("all videos")
    return len(missing)


def picture_digest(reference: Reference) -> str:
    """The sha256 of a reference's picture and mask."""
    mask = {} if reference.mask is None else {"mask": reference.mask}
    return digest({"image": reference.image} | mask)


def reconstruct(sampler: Sampler, videos: Sequence[Video], batch: int) -> list[Video]:
    """The videos through the VAE and back: what the best generator could show."""
    made: list[Video] = []
    for start in tqdm(range(0, len(videos), batch), desc="reconstruct", unit="batch"):
        now = list(videos[start : start + batch])
        filled = np.stack(now + now[:1] * (batch - len(now)))
        latents = sampler.encode(sampler.params, filled)
        made += list(distributed.fetch(sampler.decode(sampler.params, latents)))[: len(now)]
    return made
