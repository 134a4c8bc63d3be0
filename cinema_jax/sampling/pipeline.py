"""From Python: a checkpoint that makes videos of prompts and pictures. Commands, page and notebook go through it."""

import difflib
import functools
import logging
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack, get_type_hints, overload

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from cinema_jax.cinema import Cinema, Params
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.diffusion.config import Solver
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import Standing, line, stands_for
from cinema_jax.inputs.texts import check_whole, listed
from cinema_jax.inputs.typed import checked
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.sampling import room
from cinema_jax.sampling.expanding import expanded, instruction_of
from cinema_jax.sampling.mllm import MLLM, speaker
from cinema_jax.sampling.references import PictureLike, is_picture, references
from cinema_jax.sampling.requests import (
    Request,
    Settings,
    check_references,
    check_requests,
    checked_settings,
    needed_parts,
)
from cinema_jax.sampling.room import Offload, Plan
from cinema_jax.sampling.sampler import Sampler, abstract_sampler, check_trained, progress_bar, sampler_of
from cinema_jax.sampling.video import Video
from cinema_jax.weights.quantised import Kind, check_kind

logger = logging.getLogger(__name__)

# Is told after every step how many the device has computed, and of how many; before the first one (0, count). What it
# raises ends the sampling.
Progress = Callable[[int, int], Any]


# Of a call, beside `Options`.
_ARGUMENTS = ("prompt", "references", "seed", "negative_prompt", "progress", "expand_prompt", "expand_instruction")


class Options(TypedDict, total=False):
    """How videos are sampled. What is left out, or None, is as the checkpoint's config says.

    Attributes:
        steps: of the sampler.
        solver: `unipc` or `euler`; for pipelines of CogVideoX also `ddim` or `dpm`.
        guidance_text: guidance scale of the prompt; 1 is no guidance.
        guidance_reference: guidance scale of the references; 1 is no guidance.
        shift: of a flow's times: how much of the steps is spent near the noise.
        frames: of the video, 4k+1.
        height: in pixels, a multiple of 16.
        width: in pixels, a multiple of 16.
        tiled_decoding: decode the video in overlapping tiles: less memory, slightly different videos.
    """

    steps: int | None
    solver: Solver | None
    guidance_text: float | None
    guidance_reference: float | None
    shift: float | None
    frames: int | None
    height: int | None
    width: int | None
    tiled_decoding: bool | None


class Pipeline:
    """Makes videos of prompts and pictures with the weights of one checkpoint.

        pipe = cinema_jax.Pipeline.from_pretrained("runs/demo")
        video = pipe("the bird chases the snail", references=["bird.png", "snail.png"], seed=1)
        video.save("out.mp4")

    Whatever is wrong with a checkpoint or a request is an `InputError` of one sentence.

    Args:
        run: the checkpoint. None of its weights are read before the first video, or `load`.
        checkpoint: how it was named.
        weights: as what its large kernels are sampled with, as for `from_pretrained`.
    """

    def __init__(self, run: Run, checkpoint: str = "", weights: Kind | None = None):
        check_kind(weights)
        self.run, self.checkpoint, self.weights = run, checkpoint or str(run.workdir), weights
        self._sampler: Sampler | None = None

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str] = "packaged",
        *,
        init: str = "",
        weights: Kind | None = None,
        mesh: Mesh | None = None,
        offload: Offload = False,
    ) -> "Pipeline":
        """A checkpoint with its weights.

        Args:
            checkpoint: the workdir of a training run, an import, a folder in the layout of diffusers, or any of these
                as a repository of the Hugging Face hub, `hf://owner/name`. Without it, the demo that ships with the
                project, which draws critters at 64x64 pixels.
            init: where the parts that a run did not train are on this machine, if not where its config says.
            weights: `"int8"` or `"fp8"`: the large kernels of transformer, T5 and multimodal LLM are codes of one byte,
                with a scale for each output channel. By default they are as they are stored.
            mesh: what it runs on, of `cinema_jax.sampling.room.sampler_mesh`; by default all devices, over which the
                tokens of each video are split.
            offload: keep each network in the host's memory while it is not in use; `"layers"`: of the transformer's
                layers all but two also while it is.

        Raises:
            InputError: there is no such checkpoint, or it lacks a part that generates a video.
        """
        pipeline = cls.open(checkpoint, init=init, weights=weights)
        pipeline.load(mesh=mesh, offload=offload)
        return pipeline

    @classmethod
    def open(
        cls, checkpoint: str | os.PathLike[str] = "packaged", *, init: str = "", weights: Kind | None = None
    ) -> "Pipeline":
        """The same, whose weights are read when the first video is asked for and known to be possible."""
        name = os.fspath(checkpoint)
        check_kind(weights)
        return cls(Run.load(parts.checkpoint_folder(name), init), name, weights)

    def load(self, tell: Callable[[Standing], Any] | None = None, **placement: Any) -> Sampler:
        """Read the weights, unless that was done.

        Args:
            tell: is told which these are, before they are read; by default they are logged.
            placement: where they lie, and for what there must be room: of `sampler.sampler_of`.

        Raises:
            InputError: a part is not trained yet, or there is no room.
        """
        if self._sampler is None:
            given = {"standing": self.standing, "weights": self.weights}
            self._sampler = sampler_of(self.run, tell or self._log, **given, **placement)
        return self._sampler

    def plan(
        self, *, mesh: Mesh | None = None, offload: Offload = False, count: int = 1, **options: Unpack[Options]
    ) -> Plan:
        """What making `count` videos at once takes of each device, and whether it fits; no weights are read.

        The programs are compiled: those that a call compiles, so that it need not do so again.

        Args:
            mesh: as for `from_pretrained`; by default that of the weights, if they are read.
            offload: as for `from_pretrained`.
            count: of the prompts.
            options: see `Options`.

        Raises:
            InputError: as a call.
        """
        settings = self.checked([], **options)
        if mesh is None and self._sampler is not None:
            sampler = self._sampler
        else:
            mesh = room.sampler_mesh() if mesh is None else mesh
            sampler = abstract_sampler(self.run, self.standing, mesh, self.weights, streams=offload == "layers")
        return room.plan(sampler, settings, count, offload=offload, limit=room.memory(sampler.mesh))

    def _log(self, standing: Standing) -> None:
        logger.info("%s", line(self.checkpoint, standing))

    @property
    def sampler(self) -> Sampler:
        """What samples; its weights are read now, if they are not there."""
        return self.load()

    @property
    def cinema(self) -> Cinema:
        """The networks: encode and decode, prompt states, velocity. Each method takes `params` first."""
        return self.sampler.cinema

    @property
    def params(self) -> Params:
        """The weights of all parts that generate a video, by their names: `dit/...`, `aligner/...`."""
        return self.sampler.params

    @functools.cached_property
    def standing(self) -> Standing:
        """Which weights the checkpoint stands for, when this is first asked."""
        return stands_for(self.run)

    @functools.cached_property
    def preprocessor(self) -> Preprocessor:
        """What turns prompts and pictures into the networks' inputs; it cuts no text."""
        return self.run.preprocessor().whole()

    @functools.cached_property
    def _part_configs(self) -> Mapping[str, Any]:
        return self.run.part_configs(needed_parts(self.run.config))

    @overload
    def __call__(
        self,
        prompt: str,
        references: Sequence[PictureLike] = (),
        *,
        seed: int = 0,
        negative_prompt: str = "",
        progress: bool | Progress = True,
        expand_prompt: bool = False,
        expand_instruction: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> Video: ...

    @overload
    def __call__(
        self,
        prompt: Sequence[str],
        references: Sequence[Sequence[PictureLike]] = (),
        *,
        seed: int | Sequence[int] = 0,
        negative_prompt: str | Sequence[str] = "",
        progress: bool | Progress = True,
        expand_prompt: bool = False,
        expand_instruction: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> list[Video]: ...

    # Anything is taken here, so that what is wrong is told in a sentence and not by Python.
    def __call__(
        self,
        prompt: Any,
        references: Any = (),
        *,
        seed: Any = 0,
        negative_prompt: Any = "",
        progress: Any = True,
        expand_prompt: bool = False,
        expand_instruction: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Any:
        """The video of a prompt, or the videos of a list of prompts, which are sampled together.

        Args:
            prompt: what happens; or a list of prompts.
            references: a picture of each subject: a file's name, a picture of Pillow, an array (uint8, [h w 3], or
                [h w 4] with opacity). Transparency is the subject's mask. For a list of prompts a list of such lists.
            seed: decides the noise, alone: the same seed gives the same video. For several prompts one for all, or a
                list.
            negative_prompt: what to steer away from; for several prompts one for all, or a list.
            progress: whether a bar is shown; or a function that is called with (steps done, steps in all).
            expand_prompt: let the checkpoint's multimodal LLM see the pictures and write the whole prompt. It is the
                video's `prompt`, and what was given its `asked`.
            expand_instruction: a file that says how it is asked, in the place of the one that ships with the project.
            options: see `Options`.

        Returns:
            a `Video`; for a list of prompts a list of them.

        Raises:
            InputError: something of this is not accepted. It is raised before anything is computed.
        """
        if not (isinstance(progress, bool) or callable(progress)):
            raise InputError(f"progress is {progress!r}; it must be True, False or a function of (done, count)")
        requests = self.requests(prompt, references, seed=seed, negative_prompt=negative_prompt)
        settings = self.checked(requests, **options)
        if expand_prompt:
            instruction = self.instruction(expand_instruction)
            requests = [self.expanded(request, instruction) for request in requests]
        texts = dict.fromkeys(text for request in requests for text in (request.prompt, request.negative_prompt))
        self.warn_of_unknown({repr(text[:60]): text for text in texts})
        videos = self.generate(requests, settings, progress)
        return videos[0] if isinstance(prompt, str) else videos

    def requests(self, prompt: Any, references: Any = (), *, seed: Any = 0, negative_prompt: Any = "") -> list[Request]:
        """What is asked for, with its pictures read; arguments and errors are those of a call."""
        if isinstance(prompt, str):
            return [_request(prompt, references, seed, negative_prompt)]
        prompts = _list(prompt, "prompt", "text, or a list of texts")
        if not prompts:
            raise InputError("prompt is an empty list; give at least one prompt")
        pictures = _list(references, "references", "a list of pictures for each prompt") or [()] * len(prompts)
        for i, one in enumerate(pictures):
            if is_picture(one):
                raise InputError(f"references[{i}] is a picture; for several prompts, give a list of pictures for each")
        every = {"references": pictures}
        for name, value in (("seed", seed), ("negative_prompt", negative_prompt)):
            every[name] = list(value) if isinstance(value, list | tuple | np.ndarray) else [value] * len(prompts)
        for name, values in every.items():
            if len(values) != len(prompts):
                raise InputError(f"there are {len(prompts)} prompts, but the list {name} is {len(values)} long")
        return [_request(*one, f"[{i}]") for i, one in enumerate(zip(prompts, *every.values(), strict=True))]

    def warn_of_unknown(self, texts: Mapping[str, str]) -> None:
        """Name the words that the model's tokenizer does not know; `texts` by what they are called."""
        for name, text in texts.items():
            if words := self.preprocessor.unknown(text):
                known = "holds words that the model's tokenizer does not know and reads as one and the same"
                logger.warning("%s %s: %s", name, known, listed(words))

    def settings(self, **options: Any) -> Settings:
        """The checkpoint's own settings, with those of `Options` that are given; no weights are needed.

        Raises:
            InputError: there is no such option, or it cannot have such a value.
        """
        hints = get_type_hints(Options)
        for name, value in options.items():
            if name not in hints:
                close = difflib.get_close_matches(name, [*_ARGUMENTS, *hints], n=1)
                more = f"did you mean {close[0]}?" if close else f"there are {', '.join(hints)}"
                raise InputError(f"{name} is no option of a video; {more}")
            options[name] = checked(value.item() if isinstance(value, np.generic) else value, hints[name], name)
        settings = checked_settings(self.run.config, self._part_configs, **options)
        if settings.steps < 1:
            raise InputError(f"steps is {settings.steps}; it must be 1 or more")
        for name in ("guidance_text", "guidance_reference"):
            if not math.isfinite(value := getattr(settings, name)):
                raise InputError(f"{name} is {value}; it must be a finite number (1 means no guidance)")
        return settings

    def checked(self, requests: Iterable[Request], **options: Any) -> Settings:
        """The same as `settings`, once all that can be wrong is known to be right; before weights are read.

        Raises:
            InputError: also where the checkpoint lacks a part, or a request has a text or references that it cannot
                read.
        """
        check_trained(self.run, self.standing)
        settings, config = self.settings(**options), self.run.config
        requests = list(requests)
        for request in requests:
            if not request.references and self.needs_references:
                raise InputError("there are no references; give at least one picture of a subject")
            check_references(config, len(request.references))
        check_requests(self.preprocessor, requests)
        return settings

    @property
    def needs_references(self) -> bool:
        """Whether the checkpoint makes no video of a prompt alone."""
        return self.run.config.condition.conditioner != "t5"

    def generate(
        self, requests: Sequence[Request], settings: Settings, progress: bool | Progress = True
    ) -> list[Video]:
        """The videos of requests that `checked` has accepted, sampled together.

        Raises:
            InputError: one request was given in the place of a list.
        """
        if isinstance(requests, Request):
            raise InputError("one request was given; give a list of requests, [request]")
        watched = _watched(progress, settings.steps)
        frames = self.sampler(requests, settings, watched)
        fps = self.run.config.data.fps
        return [Video(own, fps, one.prompt, one.seed, one.asked) for own, one in zip(frames, requests, strict=True)]

    @functools.cached_property
    def mllm(self) -> MLLM:
        """The checkpoint's multimodal LLM, which answers; it shares the sampler's weights.

        Raises:
            InputError: there is none, or it cannot speak.
        """
        speaker(self.run)
        sampler = self.sampler
        return MLLM.of_run(self.run, mesh=sampler.mesh, there=sampler.params, standing=self.standing)

    def instruction(self, file: str | os.PathLike[str] | None = None) -> str:
        """How the multimodal LLM is asked to expand a prompt; see `expanding.instruction_of`."""
        return instruction_of(self.run, file)

    def expanded(self, request: Request, instruction: str) -> Request:
        """A request with the prompt that the multimodal LLM makes of it; see `expanding.expanded`."""
        return expanded(self.mllm, self.preprocessor, request, instruction)

    def batch(self, requests: Sequence[Request]) -> dict[str, Array]:
        """What the networks read of requests: the `batch` that methods of `cinema` take."""
        read = collate([self.preprocessor.conditions(one.prompt, one.references) for one in requests])
        return {name: jnp.asarray(x) for name, x in read.items()}


def _request(prompt: Any, pictures: Any, seed: Any, negative_prompt: Any, place: str = "") -> Request:
    """One request; `place` is where it stands among several."""
    for name, text in ((f"prompt{place}", prompt), (f"negative_prompt{place}", negative_prompt)):
        if not isinstance(text, str):
            raise InputError(f"{name} is of type {type(text).__name__}; it must be text")
        check_whole(text, name)
    if not prompt.strip():
        raise InputError(f"the prompt{place} is empty; say what happens in the video")
    try:
        number = operator.index(seed)
    except TypeError:
        raise InputError(f"seed{place} is {seed!r}; it must be a whole number") from None
    if not 0 <= number < 2**32:
        raise InputError(f"seed{place} is {number}; it must be from 0 to {2**32 - 1}")
    return Request(prompt, references(pictures, f"references{place}"), number, negative_prompt)


def _list(value: Any, name: str, accepted: str) -> list[Any]:
    if is_picture(value) or not isinstance(value, Iterable) or isinstance(value, dict | bytes):
        what = "one picture" if is_picture(value) else f"of type {type(value).__name__}"
        raise InputError(f"{name} is {what}; it must be {accepted}")
    return list(value)


def _watched(progress: bool | Progress, count: int) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """The bar, the function that is told of each step, or nothing, as `Sampler` takes it."""
    if progress is True:
        return progress_bar(count)
    if progress is False:
        return lambda states: states

    def told(states: Iterable[Any]) -> Iterator[Any]:
        progress(0, count)
        for done, latents in enumerate(states, 1):
            progress(done, count)
            yield latents

    return told
