"""Videos from prompts and references: conditions, guidance and sampler together."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from cinema_jax.cinema import Cinema, Conditions, Params
from cinema_jax.data.example import Reference
from cinema_jax.data.pipeline import Preprocessor
from cinema_jax.diffusion import flow
from cinema_jax.diffusion.config import Solver, Spacing
from cinema_jax.diffusion.guidance import Branch, guidance_coefficients, guided
from cinema_jax.diffusion.samplers import sample_steps, solver_step, solver_steps, time_grid
from cinema_jax.errors import InputError
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Request:
    """One video to generate."""

    prompt: str
    references: tuple[Reference, ...]
    # Decides the noise, alone: what else is in the batch changes nothing.
    seed: int = 0
    # Replaces the empty prompt in the branches without text.
    negative_prompt: str = ""


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


def load_sampler(workdir: Path) -> tuple[Run, "Sampler"]:
    """The sampler of a training run that has finished."""
    run = Run.load(workdir)
    missing = [name for name in ("aligner", "dit") if run.folder(name) is None]
    if missing:
        raise InputError(f"{workdir} holds no trained {' and no '.join(missing)} yet: let its training finish first")
    configs, params, _ = run.load_parts(("vae", "t5", "mllm", "aligner", "dit"))
    return run, Sampler(Cinema(run.config, configs), jax.device_put(params), run.preprocessor())


class Sampler:
    """Generates videos with one set of parameters; each shape is compiled once."""

    def __init__(self, cinema: Cinema, params: Params, preprocessor: Preprocessor):
        self.cinema, self.params, self.preprocessor = cinema, params, preprocessor
        self._conditions = jax.jit(cinema.conditions)
        self._step = jax.jit(self._guided_step, static_argnums=1)
        self._decode = jax.jit(cinema.decode_video)

    def settings(self, **changes: float | int | str | None) -> Settings:
        """The run's own settings, with those changes that are not None.

        Raises:
            InputError: the VAE cannot hold such a size (the nearest allowed one is named), or guidance is not finite.
        """
        flow, data = self.cinema.config.flow, self.cinema.config.data
        own = {"frames": data.frames, "height": data.height, "width": data.width, "steps": flow.sample_steps}
        own |= {"solver": flow.solver, "spacing": flow.spacing}
        own |= {"guidance_text": flow.guidance_text, "guidance_reference": flow.guidance_reference}
        settings = Settings(**own | {name: value for name, value in changes.items() if value is not None})
        unit = self.cinema.part(self.params, "vae").spatial_compression * self.cinema.part_configs["dit"].patch_size
        for name, value, step, rest in (
            ("frames", settings.frames, 4, 1),
            ("height", settings.height, unit, 0),
            ("width", settings.width, unit, 0),
        ):
            nearest = max(step * (1 - rest), round((value - rest) / step) * step) + rest
            if value != nearest:
                raise InputError(f"{name} is {value}; the nearest that the model can hold is {nearest}")
        return settings

    def __call__(
        self, requests: Sequence[Request], settings: Settings, progress: Callable[[Any], Any] = lambda steps: steps
    ) -> UInt8[np.ndarray, "B frames height width 3"]:
        """The videos of a batch of requests. `progress` wraps the iterator over sampler steps (a progress bar)."""
        return np.asarray(self._decode(self.params, self.latents(requests, settings, progress)))

    def latents(
        self, requests: Sequence[Request], settings: Settings, progress: Callable[[Any], Any] = lambda steps: steps
    ) -> Float[Array, "B F H W C"]:
        """The same before the VAE decodes them."""
        coefficients = guidance_coefficients(settings.guidance_text, settings.guidance_reference)
        conditions = {branch: self.conditions(requests, branch) for branch in coefficients}
        vae = self.cinema.part(self.params, "vae")
        shape = vae.latent_shape(settings.frames, settings.height, settings.width)
        keys = jnp.stack([jax.random.key(request.seed, impl="threefry2x32") for request in requests])
        noise = flow.sample_noise(keys, shape)
        grid = time_grid(settings.steps, shift=self.cinema.config.flow.shift, spacing=settings.spacing)
        steps = solver_steps(settings.solver, grid)
        factors = jnp.asarray(list(coefficients.values()))
        step = functools.partial(self._step, self.params, tuple(coefficients), factors, conditions)
        *_, latents = progress(sample_steps(step, noise, steps))
        return latents

    def conditions(self, requests: Sequence[Request], branch: Branch) -> Conditions:
        """The conditions of one guidance branch: exactly what training shows where it drops text or references."""
        examples = [
            self.preprocessor.conditions(
                request.prompt if branch.text else request.negative_prompt,
                request.references if branch.references else (),
            )
            for request in requests
        ]
        return self._conditions(self.params, collate(examples))

    def _guided_step(self, params, branches, factors, conditions, state, row):
        def velocity(z, time, conditions):
            return self.cinema.velocity(params, z, time, conditions)

        coefficients = dict(zip(branches, factors, strict=True))
        return solver_step(guided(velocity, conditions, coefficients), state, row)
