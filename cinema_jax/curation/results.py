"""What becomes of videos: clips that are kept, and a line for everything that is not."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cinema_jax.curation.shots import Span

# Examples of each step and reason that a report shows; a shard keeps as many, so that these are the same ones however
# the work is divided.
EXAMPLES = 6


@dataclasses.dataclass(frozen=True)
class Rejected:
    """What is not kept.

    Attributes:
        id: of the clip; of a whole file its name.
        step: that rejected it.
        reason: in a few words, the same for all that are rejected for it: what is counted.
        detail: what exactly.
    """

    id: str
    step: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """Something in a clip, cut out.

    Attributes:
        name: the same for all pictures of it.
        noun: what it is called.
        image: the picture's file, below the output folder; its mask is its transparency.
    """

    name: str
    noun: str
    image: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """A part of a video that is kept so far.

    Attributes:
        video: its source's name.
        hash: of `duplicates.fingerprint`.
        measures: of `quality.Measures`.
        height, width: of the video, upright.
    """

    video: str
    start: float
    end: float
    height: int
    width: int
    hash: str
    measures: dict[str, float]
    caption: str | None = None
    prompt: str | None = None
    subjects: tuple[Subject, ...] = ()

    @property
    def id(self) -> str:
        """Unique among all clips."""
        return clip_id(self.video, self.span)

    @property
    def span(self) -> Span:
        """Where it lies in its video."""
        return Span(self.start, self.end)

    def line(self, media: str) -> dict[str, Any]:
        """Its line of the manifest; `media` is the video's file there."""
        assert self.caption is not None
        line: dict[str, Any] = {"id": self.id, "video": media, "start": self.start, "end": self.end}
        line |= {"group": self.video, "caption": self.caption}
        line |= {"prompt": self.prompt} if self.prompt else {}
        references = [
            {"image": one.image, "subject": one.name, "noun": one.noun, "same_clip": True} for one in self.subjects
        ]
        return line | ({"references": references} if references else {})


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture for the report; `about` is kept, or was rejected for the reason."""

    id: str
    step: str
    reason: str
    detail: str
    # JPEG, in base64.
    picture: str


@dataclasses.dataclass
class Results:
    """What one step of work makes of some videos; adds up."""

    clips: list[Clip] = dataclasses.field(default_factory=list)
    rejected: list[Rejected] = dataclasses.field(default_factory=list)
    examples: list[Example] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: "Results") -> "Results":
        self.clips += other.clips
        self.rejected += other.rejected
        self.examples += other.examples
        return self

    def in_order(self) -> "Results":
        """The same, in an order that follows from what there is alone."""
        return Results(
            sorted(self.clips, key=lambda one: (one.video, one.start)),
            sorted(self.rejected, key=lambda one: (one.id, one.step, one.reason, one.detail)),
            sorted(self.examples, key=lambda one: (one.step, one.reason, digest(one.id))),
        )


def clip_id(video: str, span: Span) -> str:
    """What a clip is called."""
    return f"{video}@{span.start:.3f}"


def digest(*parts: object) -> str:
    """A short name of values that are the same everywhere."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=dataclasses.asdict).encode()).hexdigest()[:16]


def fewest(examples: Sequence[Example]) -> list[Example]:
    """At most `EXAMPLES` of each step and reason, chosen by hash: the same ones in whatever order they come."""
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for one in sorted(examples, key=lambda one: digest(one.id)):
        key = one.step, one.reason
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= EXAMPLES:
            kept.append(one)
    return kept
