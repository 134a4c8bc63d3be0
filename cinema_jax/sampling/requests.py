"""What is asked of a sampler, and what can be wrong with it before any weights are read."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from cinema_jax.config import Config
from cinema_jax.data.example import Reference
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.diffusion.config import DISCRETE_SOLVERS, Solver, Spacing
from cinema_jax.errors import InputError
from cinema_jax.sampling.programs import condition_parts


@dataclasses.dataclass(frozen=True)
class Request:
    """One video to generate."""

    prompt: str
    references: tuple[Reference, ...]
    # Decides the noise, alone: what else is in the batch changes nothing.
    seed: int = 0
    # Replaces the empty prompt in the branches without text.
    negative_prompt: str = ""
    # What the user had written, where the prompt is what the MLLM made of it.
    asked: str | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How videos are sampled."""

    solver: Solver
    spacing: Spacing
    steps: int
    guidance_text: float
    guidance_reference: float
    frames: int
    height: int
    width: int
    # Of a flow's times: see `flow.shift_times`.
    shift: float
    # Whether the VAE decodes in tiles: in less memory, and slightly other videos.
    tiled_decoding: bool = False


def check_references(config: Config, count: int) -> None:
    """Raises InputError where a checkpoint with this config reads no references and some are given."""
    if count and config.condition.conditioner != "mllm" and not config.condition.entities:
        raise InputError(
            f"number of references given: {count}, but this checkpoint makes videos of a prompt alone: leave them out, "
            "or take weights that read references"
        )


def needed_parts(config: Config) -> tuple[str, ...]:
    """The parts that generate a video."""
    return tuple(dict.fromkeys(("vae", *condition_parts(config), "dit")))


def check_requests(preprocessor: Preprocessor, requests: Iterable[Request]) -> None:
    """What can be wrong with requests, before any weights are read.

    Raises:
        InputError: a text that the model has no room for or cannot read, or too many references.
    """
    for request in requests:
        for text in dict.fromkeys((request.prompt, request.negative_prompt)):
            preprocessor.check(text, request.references)


def checked_settings(config: Config, part_configs: Mapping[str, Any], **changes: float | int | str | None) -> Settings:
    """A config's own settings, with those changes that are not None; no weights are needed.

    Args:
        part_configs: of the VAE and the transformer.

    Raises:
        InputError: the VAE cannot hold such a size (the nearest allowed one is named), or the solver does not fit.
    """
    flow, data = config.flow, config.data
    own = {"frames": data.frames, "height": data.height, "width": data.width, "steps": flow.sample_steps}
    own |= {"solver": flow.solver, "spacing": flow.spacing, "shift": flow.shift}
    own |= {"tiled_decoding": flow.tiled_decoding}
    own |= {"guidance_text": flow.guidance_text, "guidance_reference": flow.guidance_reference}
    settings = Settings(**own | {name: value for name, value in changes.items() if value is not None})
    if settings.solver in DISCRETE_SOLVERS and flow.prediction != "v_prediction":
        raise InputError(
            f"solver is {settings.solver}, but this transformer was trained as a flow: take unipc or euler"
        )
    if not 0 < settings.shift < math.inf:
        raise InputError(f"shift is {settings.shift}; it must be above 0 and finite")
    if changes.get("shift") is not None and (settings.solver in DISCRETE_SOLVERS or settings.spacing == "schedule"):
        raise InputError(f"shift is {settings.shift}, but the times of this checkpoint's noise schedule have none")
    vae, dit = (part_configs[name] for name in ("vae", "dit"))
    unit = vae.spatial_compression * dit.patch_size
    for name, value, step, rest in (
        ("frames", settings.frames, vae.frame_unit, 1),
        ("height", settings.height, unit, 0),
        ("width", settings.width, unit, 0),
    ):
        nearest = max(step * (1 - rest), round((value - rest) / step) * step) + rest
        if value != nearest:
            raise InputError(f"{name} is {value}; the nearest that the model can hold is {nearest}")
    return settings
