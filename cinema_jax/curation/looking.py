"""The first step: a video file is looked through once, and its shots become clips or are rejected."""

import base64
import dataclasses
from collections.abc import Sequence
from io import BytesIO

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinema_jax.curation import duplicates, quality, shots
from cinema_jax.curation.results import Clip, Example, Rejected, Results, clip_id, fewest
from cinema_jax.curation.sources import Source
from cinema_jax.data.video import VideoInfo, each_frame, probe, read_frames
from cinema_jax.errors import InputError

# Of each of the three frames of an example.
_PICTURE_WIDTH = 160


@dataclasses.dataclass(frozen=True)
class Looking:
    """What is made of video files without understanding them. Stands for itself in another process.

    Attributes:
        shots: how they are cut.
        quality: what they must be like.
        need_caption: files without a caption are rejected before anything else.
    """

    shots: shots.ShotConfig
    quality: quality.QualityConfig
    need_caption: bool

    def __call__(self, sources: Sequence[Source]) -> Results:
        """The clips of files, and what was rejected; a file that cannot be read is one of these."""
        results = Results()
        for source in sources:
            try:
                results += self._look(source)
            except InputError as error:
                # Of clips that were found before the damage none is kept.
                results.rejected.append(Rejected(source.name, "read", "cannot be read", _plain(error, source)))
        results.examples = fewest(results.examples)
        return results.in_order()

    def _look(self, source: Source) -> Results:
        if self.need_caption and source.caption is None:
            why = "there is no text file beside it, and no line of a list, and no multimodal LLM is asked"
            return Results(rejected=[Rejected(source.name, "caption", "no caption", why)])
        info = probe(source.path)
        if min(info.height, info.width) < self.quality.least_side:
            why = f"{info.width}x{info.height}; the shorter side must have {self.quality.least_side} pixels"
            return Results(rejected=[Rejected(source.name, "quality", "too small", why)])
        frames = each_frame(source.path, shots.LONGER_SIDE)
        spans, short = shots.clips(shots.shots(frames, info.duration, self.shots), self.shots)
        results = Results()
        for span in short:
            why = f"{span.seconds:.2f} s; at least {self.shots.shortest:g} s"
            results.rejected.append(Rejected(clip_id(source.name, span), "shots", "too short", why))
        for span in spans:
            results += self._clip(source, info, span)
        return results

    def _clip(self, source: Source, info: VideoInfo, span: shots.Span) -> Results:
        frames, fps = sample(source.path, info, span, self.quality)
        measures = quality.measure(frames, fps)
        name, picture = clip_id(source.name, span), strip(frames)
        if fault := quality.fault(measures, self.quality):
            rejected = Rejected(name, "quality", *fault)
            return Results(rejected=[rejected], examples=[Example(**dataclasses.asdict(rejected), picture=picture)])
        measured = dataclasses.asdict(measures)
        clip = Clip(
            video=source.name,
            start=span.start,
            end=span.end,
            height=info.height,
            width=info.width,
            hash=duplicates.fingerprint(frames),
            measures=measured,
        )
        detail = ", ".join(f"{key} {value:g}" for key, value in measured.items())
        return Results(clips=[clip], examples=[Example(name, "quality", "kept", detail, picture)])


def sample(
    path: str, info: VideoInfo, span: shots.Span, config: quality.QualityConfig
) -> tuple[UInt8[np.ndarray, "frames height width 3"], float]:
    """A clip's frames as they are measured, from its beginning, at least three; and how many of them show a second."""
    scale = min(1.0, quality.LONGER_SIDE / max(info.height, info.width))
    size = max(16, round(info.height * scale)), max(16, round(info.width * scale))
    # Where a clip is too short for three at this rate, they lie closer together.
    fps = max(config.fps, 3 / span.seconds)
    return read_frames(path, int(min(config.frames, span.seconds * fps + 1e-6)), fps, *size, start=span.start), fps


def strip(frames: UInt8[np.ndarray, "frames height width 3"]) -> str:
    """Three frames of a clip beside each other, as a JPEG in base64."""
    height = max(1, round(frames.shape[1] * _PICTURE_WIDTH / frames.shape[2]))
    chosen = [frames[i] for i in (0, len(frames) // 2, -1)]
    small = [cv2.resize(one, (_PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA) for one in chosen]
    file = BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode()


def _plain(error: InputError, source: Source) -> str:
    """What is wrong with a file, without where it lies: that is not the same everywhere."""
    return str(error).replace(source.path, source.name).replace("\n", " ")
