"""What the page does, without the page: read pictures, show them as the model will, sample until somebody stops it."""

import dataclasses
import functools
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.example import Reference
from cinema_jax.data.images import read_image
from cinema_jax.data.output import visible, write_video
from cinema_jax.errors import InputError
from cinema_jax.sampling import Request, Sampler, Settings
from cinema_jax.training.run import Run


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

    def settings(self, **changes: Any) -> Settings:
        """The checkpoint's own settings, with what was asked for, with `changes`."""
        return self.sampler.settings(**self._asked | changes)

    @property
    def most(self) -> int:
        """References of one video."""
        return self.run.config.data.max_references

    def seen(self, pictures: Sequence[str]) -> UInt8[np.ndarray, "K height width 3"]:
        """The pictures as the video's encoder sees them.

        Raises:
            InputError: one cannot be read, or there are too many.
        """
        return self.sampler.preprocessor.conditions("", _references(pictures))["references"][: len(pictures)]

    def make(
        self, order: Order, output: Path, progress: Callable[[int, int], Any], stop: threading.Event | None = None
    ) -> None:
        """Sample a video to a file.

        Args:
            output: as `write_video` takes it.
            progress: is told how many steps are done, and of how many.
            stop: ends the sampling before its next step.

        Raises:
            InputError: the order cannot be carried out.
            Stopped: `stop` was set.
        """
        request, settings = self._checked(order)
        stop = stop or threading.Event()

        def watched(steps: Iterable[Any]) -> Iterator[Any]:
            for done, step in enumerate(steps):
                if stop.is_set():
                    raise Stopped("The video was stopped.")
                progress(done, settings.steps)
                yield step

        with self._turn:
            video = self.sampler([request], settings, watched)[0]
        fps = self.run.config.data.fps
        shown, *_ = visible(video, fps, output)
        write_video(output, shown, fps)

    def warm_up(self, pictures: Sequence[str], prompt: str) -> None:
        """Compile: make a video of as many steps as any and throw it away."""
        with self._turn:
            self.sampler([Request(prompt, _references(pictures))], self.settings())

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
        if not order.pictures and self.run.config.condition.conditioner != "t5":
            raise InputError("there is no picture; give at least one of a subject")
        self.seen(order.pictures)
        request = Request(order.prompt, _references(order.pictures), order.seed, order.negative_prompt)
        return request, self.settings(**order.settings)


def _references(pictures: Sequence[str]) -> tuple[Reference, ...]:
    try:
        read = [read_image(picture) for picture in pictures]
    except InputError as error:
        # Visitors know their files by name; where these lie on the server is nobody's business.
        folders = {f"{Path(picture).parent}/" for picture in pictures}
        raise InputError(functools.reduce(lambda text, folder: text.replace(folder, ""), folders, str(error))) from None
    return tuple(Reference(picture.image, picture.mask, str(i)) for i, picture in enumerate(read))
