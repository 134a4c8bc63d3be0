"""What the page does, without the page: read pictures, show them as the model will, sample until somebody stops it."""

import dataclasses
import functools
import math
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.example import Reference
from cinema_jax.data.images import picture_size, read_image
from cinema_jax.data.output import visible, write_video
from cinema_jax.diffusion.guidance import Branch
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.texts import listed
from cinema_jax.sampling.sampler import Request, Sampler, Settings, check_references, check_requests


@dataclasses.dataclass(frozen=True)
class Order:
    """What a visitor asks for.

    Attributes:
        pictures: files, in the order in which the model gets them.
        settings: options of `Sampler.settings`, by name.
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
# The page's slider ends there; programs call the same function.
MOST_STEPS = 100


class Stopped(Exception):
    """The visitor stopped the video, or left."""


class Studio:
    """Makes videos with one checkpoint, one after the other: a second video at a time would only slow both down.

    Args:
        run: the checkpoint.
        sampler: of that checkpoint.
        checkpoint: how the command line names it.
        asked: options of `Sampler.settings` that hold unless an order says otherwise; None is none.
    """

    def __init__(self, run: Run, sampler: Sampler, checkpoint: str, asked: Mapping[str, Any]):
        self.run, self.sampler, self.checkpoint = run, sampler, checkpoint
        self._asked = {name: value for name, value in asked.items() if value is not None}
        self._turn = threading.Lock()
        # Each set of guidance branches is a program of its own. Of those that are compiled, the seconds of a step, if
        # known, and of all that follows the last one.
        self._paces: dict[tuple[Branch, ...], tuple[float | None, float]] = {}

    def settings(self, **changes: Any) -> Settings:
        """The checkpoint's own settings, with what was asked for, with `changes`."""
        return self.sampler.settings(**self._asked | changes)

    @property
    def most(self) -> int:
        """References of one video."""
        return self.run.config.data.max_references

    @property
    def needs_pictures(self) -> bool:
        """Whether the checkpoint makes no video of a prompt alone."""
        return self.run.config.condition.conditioner != "t5"

    def about(self) -> str:
        """One sentence on what the checkpoint is."""
        size, settings = sum(x.size for x in self.sampler.params.values()), self.settings()
        number = f"{size / 1e9:.1f} billion" if size > 1e9 else f"{size / 1e6:.1f} million"
        name = "This demo" if self.checkpoint == "packaged" else f"Checkpoint {Path(self.checkpoint).name}"
        makes = f"{settings.frames} frames of {settings.width} x {settings.height} pixels"
        critters = " It draws critters, small cartoon animals; photographs become blots." * self.run.draws_critters
        return f"{name} has {number} parameters and makes {makes}.{critters}"

    def seen(self, pictures: Sequence[str]) -> UInt8[np.ndarray, "K height width 3"]:
        """The pictures as the video's encoder sees them.

        Raises:
            InputError: one cannot be read, or there are too many.
        """
        return self.sampler.preprocessor.seen(self._references(pictures))

    def make(
        self, order: Order, output: Path, tell: Callable[[Report], Any], stop: threading.Event | None = None
    ) -> None:
        """Sample a video to a file.

        Args:
            output: as `write_video` takes it.
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
            video = self._sampled(request, settings, tell, stop)
            fps = self.run.config.data.fps
            shown, *_ = visible(video, fps, output)
            write_video(output, shown, fps)
        finally:
            self._turn.release()

    def _sampled(
        self, request: Request, settings: Settings, tell: Callable[[Report], Any], stop: threading.Event
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        branches, count = self.sampler.guidance(settings)[0], settings.steps
        known = branches in self._paces
        step, rest = self._paces.get(branches, (None, 0.0))
        moments: list[float] = []
        tell(Report("sampling", 0, count, step and step * count + rest) if known else Report("compiling"))

        def watched(steps: Iterable[Any]) -> Iterator[Any]:
            _end_if(stop)
            for done, latents in enumerate(steps, 1):
                moments.append(time.monotonic())
                pace = (moments[-1] - moments[0]) / (done - 1) if done > 1 else step
                tell(Report("sampling", done, count, pace and pace * (count - done) + rest))
                _end_if(stop)
                yield latents
            tell(Report("decoding", count, count, rest or None))

        video = self.sampler([request], settings, watched)[0]
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
        words += [] if self.checkpoint == "packaged" else [f"--checkpoint={self.checkpoint}"]
        words += [f"--init={self.run.init}"] * bool(self.run.init)
        words += [f"--reference={Path(picture).name}" for picture in order.pictures]
        words += [f"--prompt={order.prompt}"]
        words += [f"--negative-prompt={order.negative_prompt}"] * bool(order.negative_prompt)
        words += [f"--seed={order.seed}"]
        words += [f"--{name.replace('_', '-')}={value}" for name, value in (self._asked | order.settings).items()]
        return shlex.join([*words, "--output=out.mp4"])

    def _checked(self, order: Order) -> tuple[Request, Settings]:
        if not order.prompt.strip():
            raise InputError("the prompt is empty; say what happens in the video")
        for text in (order.prompt, order.negative_prompt):
            if len(text) > MOST_LETTERS:
                raise InputError(f"the prompt has {len(text)} letters; at most {MOST_LETTERS} are read")
        if not order.pictures and self.needs_pictures:
            raise InputError("there is no picture; give at least one of a subject")
        check_references(self.run.config, len(order.pictures))
        settings = self.settings(**order.settings)
        if not 1 <= settings.steps <= MOST_STEPS:
            raise InputError(f"{settings.steps} steps were asked for; from 1 to {MOST_STEPS} are made here")
        scales = settings.guidance_text, settings.guidance_reference
        if not all(map(math.isfinite, scales)):
            raise InputError(f"the guidance scales are {scales[0]:g} and {scales[1]:g}; they must be finite numbers")
        if not 0 <= order.seed < 2**32:
            raise InputError(f"the seed is {order.seed}; it must be from 0 to {2**32 - 1}")
        request = Request(order.prompt, self._references(order.pictures), order.seed, order.negative_prompt)
        check_requests(self.sampler.preprocessor, [request])
        return request, settings

    def unknown(self, order: Order) -> str:
        """A sentence on the words of an order that the model does not know, or nothing."""
        words = self.sampler.preprocessor.unknown(order.prompt)
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
            read = [read_image(picture) for picture in pictures]
        except InputError as error:
            # Visitors know their files by name; where these lie on the server is nobody's business.
            folders = {f"{Path(picture).parent}/" for picture in pictures}
            said = functools.reduce(lambda text, folder: text.replace(folder, ""), folders, str(error))
            raise InputError(said) from None
        return tuple(Reference(picture.image, picture.mask, str(i)) for i, picture in enumerate(read))


def _end_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("The video was stopped.")
