"""What the multimodal LLM says of clips: a caption, a short prompt, and the subjects with their boxes."""

import base64
import dataclasses
import functools
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinema_jax.curation import crops
from cinema_jax.curation.results import Clip, Example, Rejected, Results, Subject, digest, fewest
from cinema_jax.curation.sources import Source
from cinema_jax.data.video import read_frames
from cinema_jax.errors import InputError
from cinema_jax.inputs.files import whole_file
from cinema_jax.models.qwen_vl import chat

_CAPTION = """These are three frames of one video clip. Answer with JSON and nothing else:
{"caption": "...", "prompt": "...", "subjects": ["...", "..."]}
"caption": two to four sentences: who is there and looks how, what they do, where, the light, and how the camera moves.
"prompt": what somebody would write who wants to see this, in a few words, without looks.
"subjects": at most four nouns, of people, animals and things that can be told apart, the most important ones first."""
_BOXES = """Locate in this picture: {nouns}. Answer with JSON and nothing else, one object for each that is there:
[{{"bbox_2d": [x1, y1, x2, y2], "label": "one of the names above"}}]"""
# Frames of a clip that are shown, at these shares of its length, and their longer side.
_MOMENTS, _SIDE = (0.25, 0.5, 0.75), 672
# Released models name pixels of the picture as they see it: of whole blocks of this size it is seen as it is.
_BLOCK = 28
_MOST_TOKENS = 512
# Clips whose frames are in memory at once, and about which is asked together.
_TOGETHER = 16
# What may be asked for by its name: other signs may mean something to a tokenizer.
_NOUN = re.compile(r"[\w' -]{1,60}")


@runtime_checkable
class Speaker(Protocol):
    """A multimodal LLM; `cinema_jax.sampling.mllm.MLLM` is one."""

    def values(self, chats: Any, kind: Any, **options: Any) -> list[Any]:
        """Answers as values of a type, each with `value` and `problem`."""


@dataclasses.dataclass(frozen=True)
class Said:
    """What is asked for first."""

    caption: str
    prompt: str
    subjects: list[str]


@dataclasses.dataclass(frozen=True)
class Located:
    """One of the boxes that are asked for then, in pixels."""

    bbox_2d: tuple[float, float, float, float]
    label: str


@dataclasses.dataclass(frozen=True)
class Pending:
    """The clips of a video that are left."""

    source: Source
    clips: tuple[Clip, ...]

    @property
    def name(self) -> str:
        """The video's."""
        return self.source.name

    @property
    def content(self) -> tuple:
        """What descriptions follow from."""
        return (*self.source.content, self.source.caption, self.source.prompt, [clip.id for clip in self.clips])


@dataclasses.dataclass(frozen=True)
class Describing:
    """The step as work. A process loads the model with its first shard.

    Attributes:
        mllm: its folder.
        folder: of pictures of subjects, below `output`.
    """

    crops: crops.CropConfig
    mllm: str
    output: str
    folder: str

    def __call__(self, items: Sequence[Pending]) -> Results:
        """The clips with their captions and subjects."""
        return described(_speaker(self.mllm), items, self.crops, Path(self.output), self.folder)


@functools.lru_cache(maxsize=1)
def _speaker(name: str) -> Speaker:
    from cinema_jax.sampling.mllm import MLLM

    return MLLM.from_pretrained(name)


def described(
    speaker: Speaker, items: Sequence[Pending], config: crops.CropConfig, output: Path, folder: str
) -> Results:
    """Clips with captions and subjects, whose pictures are written to a folder below `output`."""
    results = Results()
    clips = [(item.source, clip) for item in items for clip in item.clips]
    for start in range(0, len(clips), _TOGETHER):
        shown = []
        for source, clip in clips[start : start + _TOGETHER]:
            try:
                shown.append(_shown(source, clip))
            except InputError as error:
                results.rejected.append(Rejected(clip.id, "caption", "cannot be read", str(error)))
        told = _told(speaker, shown, config, results)
        for one, boxes in zip(told, _boxes(speaker, told), strict=True):
            subjects = _subjects(one, boxes, config, output, folder, results)
            caption = one.source.caption or one.caption
            prompt = one.source.prompt or one.prompt
            described = dataclasses.replace(one.clip, caption=caption, prompt=prompt, subjects=subjects)
            results.clips.append(described)
    results.examples = fewest(results.examples)
    return results.in_order()


@dataclasses.dataclass(frozen=True, eq=False)
class _Shown:
    """A clip, its frames as the model sees them, the middle one as it is, and what the model has said."""

    source: Source
    clip: Clip
    frames: Sequence[np.ndarray]
    middle: np.ndarray
    caption: str = ""
    prompt: str | None = None
    nouns: tuple[str, ...] = ()


def _shown(source: Source, clip: Clip) -> _Shown:
    frames = [_frame(source, clip, moment) for moment in _MOMENTS]
    return _Shown(source, clip, [seen_by_model(frame) for frame in frames], frames[len(frames) // 2])


def _told(speaker: Speaker, shown: Sequence[_Shown], config: crops.CropConfig, results: Results) -> list[_Shown]:
    """The clips of which the model says something, with what it says; the others are rejected."""
    asked = [chat.ask(*one.frames, _CAPTION) for one in shown]
    told = []
    for one, answer in zip(shown, speaker.values(asked, Said, max_new_tokens=_MOST_TOKENS), strict=True):
        said = answer.value
        if said is None or not said.caption.strip():
            why = answer.problem or "the caption is empty"
            results.rejected.append(Rejected(one.clip.id, "caption", "no answer of use", why))
            continue
        nouns = list(dict.fromkeys(noun.strip() for noun in said.subjects))[: config.most]
        for noun in [noun for noun in nouns if not _NOUN.fullmatch(noun)]:
            nouns.remove(noun)
            why = "it is empty, long, or has other signs than words have"
            results.rejected.append(Rejected(f"{one.clip.id}#{noun}", "subjects", "no noun", why))
        texts = {"caption": " ".join(said.caption.split()), "prompt": " ".join(said.prompt.split()) or None}
        told.append(dataclasses.replace(one, **texts, nouns=tuple(nouns)))
    return told


def _subjects(
    one: _Shown,
    boxes: Sequence[Sequence[tuple[str, crops.Box]]],
    config: crops.CropConfig,
    output: Path,
    folder: str,
    results: Results,
) -> tuple[Subject, ...]:
    """The subjects of a clip, whose pictures are written; what is not kept is rejected."""
    kept: list[Subject] = []
    for noun, box, why in agreed(boxes, one.nouns, config):
        name = f"{one.clip.id}#{noun}"
        picture, why = (None, why) if why else crops.cut_out(one.middle, box, config)
        if why:
            results.rejected.append(Rejected(name, "subjects", *why))
            continue
        image = f"{folder}/{digest(one.clip.id)}/{len(kept)}.png"
        (output / image).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(output / image) as partial:
            Image.fromarray(picture).save(partial, "PNG")
        kept.append(Subject(str(len(kept)), noun, image))
        results.examples.append(Example(name, "subjects", "kept", noun, _thumbnail(picture)))
    return tuple(kept)


def _boxes(speaker: Speaker, told: Sequence[_Shown]) -> list[list[list[tuple[str, crops.Box]]]]:
    """Of each clip, names with boxes in each frame; of an answer that is of no use none."""
    asked = [(frame, _BOXES.format(nouns=", ".join(one.nouns))) for one in told if one.nouns for frame in one.frames]
    answers = speaker.values([chat.ask(*each) for each in asked], list[Located], max_new_tokens=_MOST_TOKENS)
    found = iter(
        [(one.label.strip(), box) for one in answer.value or () if (box := _shares(one, frame)) is not None]
        for (frame, _), answer in zip(asked, answers, strict=True)
    )
    return [[next(found) if one.nouns else [] for _ in one.frames] for one in told]


def _shares(one: Located, frame: np.ndarray) -> crops.Box | None:
    """A box as shares of the frame; None: it is none, or wholly outside."""
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = (
        min(max(side / size, 0.0), 1.0) for side, size in zip(one.bbox_2d, (width, height) * 2, strict=True)
    )
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def agreed(
    boxes: Sequence[Sequence[tuple[str, crops.Box]]], nouns: Sequence[str], config: crops.CropConfig
) -> list[tuple[str, crops.Box, tuple[str, str] | None]]:
    """Each noun with its box in the middle frame, and why it is no subject, or None.

    Args:
        boxes: of each frame, with the names that the model gave them.
    """
    found: list[tuple[str, crops.Box, tuple[str, str] | None]] = []
    for noun in nouns:
        own = [[box for name, box in frame if name.casefold() == noun.casefold()] for frame in boxes]
        why = crops.disagreement(own, config)
        middle = (0.0, 0.0, 0.0, 0.0) if why else own[len(own) // 2][0]
        kept = [] if why else [(name, box) for name, box, wrong in found if not wrong]
        if same := [name for name, box in kept if crops.overlap(box, middle) > config.most_overlap]:
            why = "same box", f"as {same[0]}"
        found.append((noun, middle, why))
    return found


def seen_by_model(frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame at a size that the model takes as it is, so that its pixels are ours."""
    scale = min(1.0, _SIDE / max(frame.shape[:2]))
    height, width = (max(2, round(side * scale / _BLOCK)) * _BLOCK for side in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _frame(source: Source, clip: Clip, moment: float) -> UInt8[np.ndarray, "height width 3"]:
    start = clip.start + moment * clip.span.seconds
    return read_frames(source.path, 1, 1.0, clip.height, clip.width, start=start)[0]


def _thumbnail(picture: UInt8[np.ndarray, "h w 4"]) -> str:
    image = Image.fromarray(picture)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    small = Image.alpha_composite(white, image).convert("RGB")
    small.thumbnail((160, 160))
    file = BytesIO()
    small.save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode()
