"""A run on a user's own videos, measured on the clips that it held out, by features that need no other network."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from cinema_jax.data.example import Conditions, Reference
from cinema_jax.data.images import letterbox
from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.evaluation import videos, webpage
from cinema_jax.evaluation.videos import Video
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.requests import Request, Settings
from cinema_jax.sampling.sampler import Sampler
from cinema_jax.training.reports import held_out_conditions

# Levels of each colour that are told apart.
_LEVELS = 6
# Of the frame's shorter side: windows in which a subject is looked for, and the steps between them.
_WINDOWS, _STRIDE = (0.4, 0.6, 0.9), 0.15
_WORDS = {
    "generated": "what the checkpoint makes of the prompt and the references of clips that it was not trained on",
    "ceiling": "the real clips through the checkpoint's VAE and back: the best that it could show",
    "chance": "what guessing gives",
}
# Pixels of a reference on the page.
_SIDE = 256


@dataclasses.dataclass(frozen=True)
class Clip:
    """A held-out clip: what it is asked by, and its frames."""

    id: str
    told: Conditions
    real: Video


def held_out(run: Run, settings: Settings, most: int | None) -> list[Clip]:
    """The clips that the run held out, in its manifest's order, the first `most` of them.

    Raises:
        InputError: they are not there any more, or other sizes are asked for than the run's.
    """
    data = run.config.data
    if (settings.frames, settings.height, settings.width) != (data.frames, data.height, data.width):
        raise InputError("held-out clips are compared at the run's own size: leave frames, height and width out")
    source = run.source("validation")
    chosen = range(min(most or len(source), len(source)))
    return [Clip(source.id(i), held_out_conditions(run, source, i), source.video(i)) for i in chosen]


def requests(clips: Sequence[Clip]) -> list[Request]:
    """What is asked for, of each clip."""
    return [Request(clip.told.prompt, clip.told.references, seed=seed) for seed, clip in enumerate(clips)]


def evaluate(
    run: Run, sampler: Sampler, settings: Settings, clips: Sequence[Clip], output: Path, *, batch: int, name: str
) -> str:
    """Generate a video for each held-out clip, compare it with the real one, and write page and figures.

    Args:
        name: what the page calls the checkpoint.

    Returns:
        The figures as text; of several processes the first one judges.
    """
    about = {"suite": "own", "digests": videos.digests(sampler), "settings": dataclasses.asdict(settings)}
    prints = {
        clip.id: videos.fingerprint(clip.told.prompt, seed, map(videos.picture_digest, clip.told.references))
        for seed, clip in enumerate(clips)
    }
    videos.claim(output, about | {"clips": [clip.id for clip in clips]}, prints)
    begun, kept = time.monotonic(), videos.Gallery(output)
    asked = {f"{number:03d}": one for number, one in enumerate(requests(clips))}
    videos.make_missing(sampler, settings, list(asked), asked.__getitem__, kept.file, kept.write, batch)
    if not distributed.is_first():
        return ""
    made = [kept.read(number, settings.frames, settings.height, settings.width) for number in asked]
    real = [clip.real for clip in clips]
    kinds = {"generated": made, "real": real, "reconstructed": videos.reconstruct(sampler, real, batch)}
    told = [clip.told for clip in clips]
    found = {kind: figures(them, real, told) for kind, them in kinds.items()}
    losses = {
        stage: {name: value for name, value in (run.finished(stage) or {}).items() if name.startswith("eval_")}
        for stage in run.config.stages
    }
    seconds = round(time.monotonic() - begun, 1)
    parts.write_json(
        output / "figures.json",
        about | {"clips": [clip.id for clip in clips], "figures": found, "losses": losses, "seconds": seconds},
    )
    text = table(found, losses, len(clips))
    title = f"{name}: {len(clips)} held-out clips"
    _write_page(output, clips, made, run.config.data.fps, found, losses, title)
    return text


def figures(shown: Sequence[Video], real: Sequence[Video], told: Sequence[Conditions]) -> dict[str, float | None]:
    """What a kind of videos reaches: see `RATIOS` and `_MEANINGS`. None where it cannot be said."""
    wins, chances = [], []
    references = [reference for one in told for reference in one.references]
    for video, one in zip(shown, told, strict=True):
        for own in one.references:
            # Another picture of a subject of this name may show the same one.
            others = [other for other in references if _name(other) not in {_name(each) for each in one.references}]
            if others:
                windows = _windows(video)
                scores = np.array([_likeness(windows, each) for each in (own, *others)])
                wins.append(float(scores[0] > scores[1:].max()))
                chances.append(1 / len(scores))
    return {
        "likeness": float(np.mean(wins)) if wins else None,
        "chance": float(np.mean(chances)) if chances else None,
    } | {name: _ratio(ratio.measure, shown, real) for name, ratio in RATIOS.items()}


def _name(reference: Reference) -> str:
    return reference.noun or reference.subject


def _ratio(measure: Callable[[Video], float], shown: Sequence[Video], real: Sequence[Video]) -> float | None:
    theirs = np.mean([measure(video) for video in real])
    return float(np.mean([measure(video) for video in shown]) / theirs) if theirs else None


def _sharpness(video: Video) -> float:
    """Mean difference of neighbouring pixels, in grey levels."""
    grey = video.astype(np.float32).mean(axis=-1)
    return float(np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean())


def _motion(video: Video) -> float:
    """Mean difference of neighbouring frames, in grey levels."""
    return float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean()) if len(video) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A figure of a video: its mean over all videos of a kind, over that of the real clips."""

    # What it is called for people, and what the page says of it.
    title: str
    meaning: str
    measure: Callable[[Video], float]


RATIOS = {
    "sharpness": Ratio(
        "sharpness, of the real clips'",
        "mean difference of neighbouring pixels over that of the real clips: under 1 is blurred",
        _sharpness,
    ),
    "motion": Ratio(
        "change from frame to frame, of the real clips'",
        "mean difference of neighbouring frames over that of the real clips: under 1 is stiff, over 1 flickers",
        _motion,
    ),
}
# What each figure is called for people.
_TITLES = {
    "likeness": "subjects whose colours are likest their own reference",
    "chance": "the same by chance",
    **{name: ratio.title for name, ratio in RATIOS.items()},
}
# What those of the page's table say.
_MEANINGS = {
    "likeness": "share of subjects of which a part of the video has more of the colours of their own reference than of "
    "any other held-out one of another name",
    **{name: ratio.meaning for name, ratio in RATIOS.items()},
}


def _likeness(windows: Float[np.ndarray, "windows colours"], reference: Reference) -> float:
    """How much of the subject's colours the best window has: histogram intersection, of 1."""
    mask = np.ones(reference.image.shape[:2], bool) if reference.mask is None else reference.mask > 127
    own = _histogram(reference.image[mask if mask.any() else ~mask])
    return float(np.minimum(windows, own).sum(axis=1).max())


def _windows(video: Video) -> Float[np.ndarray, "windows colours"]:
    """The colours of windows of three frames."""
    found = []
    for frame in video[:: max(1, len(video) // 2)][:3]:
        side = min(frame.shape[:2])
        step = max(1, round(_STRIDE * side))
        for size in (round(share * side) for share in _WINDOWS):
            for top in range(0, frame.shape[0] - size + 1, step):
                for left in range(0, frame.shape[1] - size + 1, step):
                    found.append(_histogram(frame[top : top + size, left : left + size].reshape(-1, 3)))
    return np.stack(found)


def _histogram(pixels: UInt8[np.ndarray, "pixels 3"]) -> Float[np.ndarray, " colours"]:
    """The share of each colour."""
    levels = pixels.astype(np.int32) * _LEVELS // 256
    codes = (levels[:, 0] * _LEVELS + levels[:, 1]) * _LEVELS + levels[:, 2]
    return np.bincount(codes, minlength=_LEVELS**3) / len(codes)


def table(found: dict[str, dict[str, float | None]], losses: dict[str, dict[str, float]], clips: int) -> str:
    """The figures as plain text."""
    rows = [["", *found], *([title, *(_text(found[kind][name]) for kind in found)] for name, title in _TITLES.items())]
    width = max(len(row[0]) for row in rows)
    lines = ["  ".join([row[0].ljust(width), *(x.ljust(13) for x in row[1:])]).rstrip() for row in rows]
    for stage, values in losses.items():
        if values:
            lines.append(f"{stage}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if found["real"]["likeness"] is None:
        lines.append("likeness needs held-out clips with subjects of different names (noun, or else subject)")
    return "\n".join([f"{clips} held-out clips", *lines])


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _write_page(
    folder: Path,
    clips: Sequence[Clip],
    made: Sequence[Video],
    fps: float,
    found: dict[str, dict[str, float | None]],
    losses: dict[str, dict[str, float]],
    title: str,
) -> None:
    """`index.html`: the figures, and of each clip references, the generated and the real video, looping."""
    chance = {"likeness": found["generated"]["chance"]}
    rows = [
        webpage.Row(
            _TITLES[name],
            meaning,
            *(_text(found[kind][name]) for kind in ("generated", "reconstructed")),
            _text(chance.get(name)),
        )
        for name, meaning in _MEANINGS.items()
    ]
    shown = []
    for number, (clip, video) in enumerate(zip(clips, made, strict=True)):
        pictures = [letterbox(r.image, r.mask, _SIDE, _SIDE) for r in clip.told.references]
        shown.append(webpage.Shown(f"{number:03d}", clip.told.prompt, pictures, clip.real, video, clip.id))
    webpage.write(folder, title, rows, _WORDS, shown, fps, table(found, losses, len(clips)))
