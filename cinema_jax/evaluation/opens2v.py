"""OpenS2V-Eval (arXiv 2505.20292): its list of samples in, `<id>.mp4` out, and its scores merged by its weights.

The scores themselves are made by the benchmark's own scripts, which need GPUs and several large models.
"""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cinema_jax.data.example import Reference
from cinema_jax.data.images import read_image
from cinema_jax.data.output import write_video
from cinema_jax.errors import InputError
from cinema_jax.evaluation.videos import claim, fingerprint, make_missing
from cinema_jax.experiment import parts
from cinema_jax.inputs.files import check_regular, within
from cinema_jax.sampling.requests import Request, Settings
from cinema_jax.sampling.sampler import Sampler

# Version 1.1 (eval/merge_result.py of PKU-YuanGroup/OpenS2V-Nexus). File and field of each score; the range that
# becomes [0, 1]; what it weighs in total for open-domain (also single-domain) and for human-domain lists.
SCORES: dict[str, tuple[str, str, float, float, float, float]] = {
    "aes_score": ("aesthetic_score", "aes_score", 4.0, 7.0, 0.16, 0.18),
    "motion_smoothness": ("motion_smoothness", "motion_smoothness", 0.0, 1.0, 0.06, 0.09),
    "motion_amplitude": ("motion_amplitude", "motion_fb", 0.0, 1.0, 0.02, 0.03),
    "facesim_cur": ("facesim", "cur_score", 0.0, 1.0, 0.20, 0.25),
    "gme_score": ("gmescore", "gme_score", 0.0, 1.0, 0.12, 0.15),
    "nexus_score": ("nexusscore", "nexus_score", 0.0, 0.05, 0.20, 0.0),
}
NATURAL = ("naturalscore_1", "naturalscore_2", "naturalscore_3")
NATURAL_WEIGHTS = (0.24, 0.30)
DOMAINS = ("Open-Domain", "Human-Domain", "Single-Domain")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One prompt of the list."""

    id: str
    prompt: str
    images: tuple[Path, ...]


def read_samples(file: Path) -> list[Sample]:
    """The samples of a list such as Open-Domain_Eval.json; its images lie beside it.

    Raises:
        InputError: it is not such a list, or an image is missing; names the sample.
    """
    samples = []
    for name, entry in parts.read_json(file).items():
        # The id becomes the name of a file.
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"{file}: {name!r} is no id; letters, digits, _ and - are accepted")
        prompt = entry.get("prompt") if isinstance(entry, dict) else None
        images = entry.get("img_paths") if isinstance(entry, dict) else None
        listed = isinstance(images, list) and images and all(isinstance(image, str) for image in images)
        if not isinstance(prompt, str) or not listed:
            raise InputError(f"{file}: {name} needs a prompt and img_paths, as in OpenS2V-Eval's own lists")
        samples.append(Sample(name, prompt, tuple(_image(file, name, image) for image in images)))
    if not samples:
        raise InputError(f"{file} lists no samples")
    return samples


def _image(file: Path, name: str, image: str) -> Path:
    """The file of an image that the list `file` names; a list from elsewhere reads no other files of this machine."""
    try:
        path = within(file.parent, file.parent / image)
        check_regular(path)
    except (InputError, ValueError) as error:
        raise InputError(f"{file}: {name} names an image that cannot be read: {error}") from None
    return path


def request(sample: Sample, seed: int) -> Request:
    """What is asked for, of a sample. Raises `InputError` where one of its pictures cannot be read."""
    pictures = [read_image(path) for path in sample.images]
    references = tuple(Reference(p.image, p.mask, str(i)) for i, p in enumerate(pictures))
    return Request(sample.prompt, references, seed)


def generate(
    sampler: Sampler, settings: Settings, samples: Sequence[Sample], folder: Path, about: dict[str, Any], batch: int
) -> int:
    """Write `<id>.mp4` of each sample that is not in the folder yet; how many were made by all processes.

    `about` says what makes them: see `videos.claim`.
    """
    fps = sampler.cinema.config.data.fps
    files = {sample.id: [hashlib.sha256(path.read_bytes()).hexdigest() for path in sample.images] for sample in samples}
    prints = {sample.id: fingerprint(sample.prompt, seed, files[sample.id]) for seed, sample in enumerate(samples)}
    claim(folder, about, prints)
    # The seed is the sample's place in the list, wherever a stopped command goes on.
    asked = {sample.id: functools.partial(request, sample, seed) for seed, sample in enumerate(samples)}
    file = lambda name: folder / f"{name}.mp4"  # noqa: E731
    write = lambda name, video: write_video(file(name), video, fps)  # noqa: E731
    return make_missing(sampler, settings, list(asked), lambda name: asked[name](), file, write, batch)


def merge(folder: Path, domain: str) -> dict[str, float]:
    """The total and each score, brought to [0, 1], from the files that the benchmark's scripts leave in a folder.

    Raises:
        InputError: a score of the domain is missing in the folder, or a file holds something else than numbers.
    """
    human = domain == "Human-Domain"
    wanted = {name: row for name, row in SCORES.items() if row[5 if human else 4] > 0}
    files = {path.stem: parts.read_json(path) for path in sorted(folder.glob("*.json"))}
    if missing := [file for file in (*(row[0] for row in wanted.values()), *NATURAL[:1]) if not files.get(file)]:
        raise InputError(f"{folder} lacks scores of OpenS2V-Eval: {', '.join(f'{file}.json' for file in missing)}")
    merged = {name: _score(folder, files, name) for name in wanted}
    total = sum(merged[name] * row[5 if human else 4] for name, row in wanted.items())
    merged["natural_score"] = _natural(folder, files)
    return {"total_score": total + merged["natural_score"] * NATURAL_WEIGHTS[human], **merged}


def _score(folder: Path, files: dict[str, dict[str, Any]], name: str) -> float:
    """The mean over videos of one score."""
    file, field, low, high, *_ = SCORES[name]
    entries = {key: entry for key, entry in files[file].items() if isinstance(entry, dict) and field in entry}
    values = [_number(folder, file, key, entry[field]) for key, entry in entries.items()]
    if name.startswith("motion"):
        values = [abs(value) for value in values]
    if name == "nexus_score":
        # The benchmark leaves videos out in which it found no subject to compare.
        values = [value for value in values if value != 0]
    floor = low if name == "aes_score" else -math.inf
    if not values:
        raise InputError(f"{folder / file}.json holds no {field}")
    return _scaled([max(floor, min(value, high)) for value in values], low, high)


def _natural(folder: Path, files: dict[str, dict[str, Any]]) -> float:
    """The mean over videos of the mean of a video's (up to) three marks, of 1 to 5."""
    marks: dict[str, list[float]] = {}
    for file in NATURAL:
        for key, mark in files.get(file, {}).items():
            marks.setdefault(key, []).append(_number(folder, file, key, mark))
    return _scaled([min(5.0, max(1.0, sum(given) / len(given))) for given in marks.values()], 1.0, 5.0)


def _scaled(values: list[float], low: float, high: float) -> float:
    """Their mean with [low, high] as [0, 1]."""
    return (sum(values) / len(values) - low) / (high - low)


def _number(folder: Path, file: str, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{folder / file}.json: {key} has the score {value!r}, which is no number")
    return number
