"""What the page does, without the page: read pictures, show them as the model will, sample until somebody stops it."""

import dataclasses
import functools
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.example import Reference
from cinema_jax.data.images import picture_size
from cinema_jax.diffusion.guidance import Branch
from cinema_jax.errors import InputError
from cinema_jax.inputs.texts import listed
from cinema_jax.sampling.pipeline import Pipeline
from cinema_jax.sampling.references import references
from cinema_jax.sampling.requests import Request, Settings, check_references
from cinema_jax.sampling.video import Video


@dataclasses.dataclass(frozen=True)
class Order:
    """What a visitor asks for.

    Attributes:
        pictures: files, in the order in which the model gets them.
        settings: options of a `Pipeline`, by name.
    """

    pictures: tuple[str, ...]
    prompt: str
    negative_prompt: str
    seed: int
    settings: Mapping[str, float | int | str]


@dataclasses.dataclass(frozen=True)
class Report:
    """How far a video is.

    Attributes:
        phase: what is being done; whoever waits while the model is compiled is told that.
        done: sampler steps that the device has computed, of `count`.
        left: seconds until the video is there, as far as can be said.
    """

    phase: Literal["compiling", "sampling", "decoding"]
    done: int = 0
    count: int = 1
    left: float | None = None


# Of all pictures of one order, before they are decoded: a photograph of a phone has 12 to 50 million.
MOST_PIXELS = 64_000_000
# Of a prompt, before it is cut into tokens.
MOST_LETTERS = 10_000
# The page's sliders end there; programs call the same function.
MOST_STEPS, MOST_VIDEOS = 100, 4


class Stopped(Exception):
    """The visitor stopped the video, or left."""


class Studio:
    """Makes videos with one checkpoint, one after the other: a second video at a time would only slow both down.

    Args:
        pipeline: of that checkpoint.
        asked: options of the pipeline that hold unless an order says otherwise; None is none.
    """

    def __init__(self, pipeline: Pipeline, asked: Mapping[str, Any]):
        self.pipeline = pipeline
        self._asked = {name: value for name, value in asked.items() if value is not None}
        self._turn = threading.Lock()
        # Each set of guidance branches is a program of its own. Of those that are compiled, the seconds of a step, if
        # known, and of all that follows the last one.
        self._paces: dict[tuple[Branch, ...], tuple[float | None, float]] = {}

    def settings(self, **changes: Any) -> Settings:
        """The checkpoint's own settings, with what was asked for, with `changes`."""
        return self.pipeline.settings(**self._asked | changes)

    @property
    def most(self) -> int:
        """References of one video."""
        return self.pipeline.run.config.data.max_references

    @property
    def needs_pictures(self) -> bool:
        """Whether the checkpoint makes no video of a prompt alone."""
        return self.pipeline.needs_references

    def about(self) -> str:
        """One sentence on what the checkpoint is."""
        size, settings = sum(x.size for x in self.pipeline.params.values()), self.settings()
        number = f"{size / 1e9:.1f} billion" if size > 1e9 else f"{size / 1e6:.1f} million"
        checkpoint = self.pipeline.checkpoint
        name = "This demo" if checkpoint == "packaged" else f"Checkpoint {Path(checkpoint).name}"
        makes = f"{settings.frames} frames of {settings.width} x {settings.height} pixels"
        draws = self.pipeline.run.draws_critters
        critters = " It draws critters, small cartoon animals; photographs become blots." * draws
        return f"{name} has {number} parameters and makes {makes}.{critters}"

    def seen(self, pictures: Sequence[str]) -> UInt8[np.ndarray, "K height width 3"]:
        """The pictures as the video's encoder sees them.

        Raises:
            InputError: one cannot be read, or there are too many.
        """
        return self.pipeline.preprocessor.seen(self._references(pictures))

    def make(
        self, order: Order, output: Path, tell: Callable[[Report], Any], stop: threading.Event | None = None
    ) -> None:
        """Sample a video to a file.

        Args:
            output: as `Video.save` takes it.
            tell: is told how far it is, after every step and where another phase begins.
            stop: ends the sampling after the step that is being computed.

        Raises:
            InputError: the order cannot be carried out.
            Stopped: `stop` was set.
        """
        request, settings = self._checked(order)
        stop = stop or threading.Event()
        if not self._turn.acquire(blocking=False):
            # Only the first video, which warms up, is made without an order.
            tell(Report("compiling"))
            while not self._turn.acquire(timeout=0.1):
                _end_if(stop)
        try:
            self._sampled(request, settings, tell, stop).save(output)
        finally:
            self._turn.release()

    def _sampled(
        self, request: Request, settings: Settings, tell: Callable[[Report], Any], stop: threading.Event
    ) -> Video:
        branches, count = self.pipeline.sampler.guidance(settings)[0], settings.steps
        known = branches in self._paces
        step, rest = self._paces.get(branches, (None, 0.0))
        moments: list[float] = []
        tell(Report("sampling", 0, count, step and step * count + rest) if known else Report("compiling"))

        def progress(done: int, count: int) -> None:
            if done:
                moments.append(time.monotonic())
                pace = (moments[-1] - moments[0]) / (done - 1) if done > 1 else step
                tell(Report("sampling", done, count, pace and pace * (count - done) + rest))
            _end_if(stop)
            if done == count:
                tell(Report("decoding", count, count, rest or None))

        [video] = self.pipeline.generate([request], settings, progress)
        # After the first video's last step the decoder was compiled.
        rest = time.monotonic() - moments[-1] if self._paces else 0.0
        self._paces[branches] = (moments[-1] - moments[0]) / (count - 1) if count > 1 else step, rest
        return video

    def warm_up(self, pictures: Sequence[str], prompt: str) -> None:
        """Compile: make a video of as many steps as any and throw it away."""
        with self._turn:
            request = Request(prompt, self._references(pictures))
            self._sampled(request, self.settings(), lambda report: None, threading.Event())

    def command(self, order: Order) -> str:
        """The command line that makes the same video of the same pictures, wherever these lie."""
        words = ["python", "-m", "cinema_jax.generate"]
        checkpoint, init = self.pipeline.checkpoint, self.pipeline.run.init
        words += [] if checkpoint == "packaged" else [f"--checkpoint={checkpoint}"]
        words += [f"--init={init}"] * bool(init)
        words += [f"--reference={Path(picture).name}" for picture in order.pictures]
        words += [f"--prompt={order.prompt}"]
        words += [f"--negative-prompt={order.negative_prompt}"] * bool(order.negative_prompt)
        words += [f"--seed={order.seed}"]
        words += [f"--{name.replace('_', '-')}={value}" for name, value in (self._asked | order.settings).items()]
        return shlex.join([*words, "--output=out.mp4"])

    def _checked(self, order: Order) -> tuple[Request, Settings]:
        for text in (order.prompt, order.negative_prompt):
            if len(text) > MOST_LETTERS:
                raise InputError(f"the prompt has {len(text)} letters; at most {MOST_LETTERS} are read")
        if order.prompt.strip() and not order.pictures and self.needs_pictures:
            raise InputError("there is no picture; give at least one of a subject")
        check_references(self.pipeline.run.config, len(order.pictures))
        settings = self.settings(**order.settings)
        if settings.steps > MOST_STEPS:
            raise InputError(f"{settings.steps} steps were asked for; from 1 to {MOST_STEPS} are made here")
        [request] = self.pipeline.requests(
            order.prompt, self._references(order.pictures), seed=order.seed, negative_prompt=order.negative_prompt
        )
        return request, self.pipeline.checked([request], **self._asked | order.settings)

    def unknown(self, order: Order) -> str:
        """A sentence on the words of an order that the model does not know, or nothing."""
        words = self.pipeline.preprocessor.unknown(order.prompt)
        return f" The model does not know, and reads as one and the same: {listed(words)}." if words else ""

    def _references(self, pictures: Sequence[str]) -> tuple[Reference, ...]:
        """The pictures of a visitor; counted and measured, by their headers, before any is decoded.

        Raises:
            InputError: one cannot be read, or there are too many, or they are too large together.
        """
        if len(pictures) > self.most:
            raise InputError(f"{len(pictures)} references were given; at most {self.most} are accepted")
        try:
            pixels = sum(width * height for width, height in map(picture_size, pictures))
            if pixels > MOST_PIXELS:
                raise InputError(
                    f"the pictures have {pixels / 1e6:.0f} million pixels together; at most {MOST_PIXELS / 1e6:.0f} "
                    "million are read"
                )
            return references(pictures, "pictures")
        except InputError as error:
            # Visitors know their files by name; where these lie on the server is nobody's business.
            folders = {f"{Path(picture).parent}/" for picture in pictures}
            said = functools.reduce(lambda text, folder: text.replace(folder, ""), folders, str(error))
            raise InputError(said) from None


def _end_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("The video was stopped.")
