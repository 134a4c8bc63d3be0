"""Videos from prompts and references: conditions, guidance and sampler together."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from cinema_jax.cinema import Cinema, Conditions, Params
from cinema_jax.config import Config
from cinema_jax.data.example import Reference
from cinema_jax.data.pipeline import Preprocessor
from cinema_jax.devices import distributed
from cinema_jax.diffusion import flow
from cinema_jax.diffusion.config import DISCRETE_SOLVERS, Solver, Spacing
from cinema_jax.diffusion.discrete import discrete_start, discrete_step, discrete_steps, dynamic_guidance
from cinema_jax.diffusion.guidance import Branch, branch_factors, guidance_coefficients, guided
from cinema_jax.diffusion.samplers import sample_steps, solver_step, solver_steps, time_grid, timestep_grid
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import Gone, Standing, line, stands_for
from cinema_jax.models.layers import platform
from cinema_jax.models.qwen_vl.processing import collate

logger = logging.getLogger(__name__)

# How often weights are looked for anew that a run which goes on has removed.
_TRIES = 3


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
    # Of a flow's times: see `flow.shift_times`.
    shift: float


def load_sampler(checkpoint: str | Path = "packaged") -> tuple[Run, "Sampler"]:
    """A checkpoint by its name on the command line: a finished run, a released pipeline, or the packaged demo."""
    run = Run.load(parts.checkpoint_folder(str(checkpoint)))
    return run, sampler_of(run, lambda standing: logger.info("%s", line(str(checkpoint), standing)))


def check_references(config: Config, count: int) -> None:
    """Raises InputError where a checkpoint with this config reads no references and some are given."""
    if count and config.condition.conditioner != "mllm" and not config.condition.entities:
        raise InputError(
            f"number of references given: {count}, but this checkpoint makes videos of a prompt alone: leave them out, "
            "or take weights that read references"
        )


def needed_parts(config: Config) -> tuple[str, ...]:
    """The parts that generate a video."""
    reading = ("mllm", "aligner") if config.condition.conditioner == "mllm" else ("t5",)
    return ("vae", *reading, "dit")


def sampler_of(run: Run, tell: Callable[[Standing], Any] = lambda standing: None) -> "Sampler":
    """That of a run which is loaded, with the weights that it stands for (`experiment/standing.py`).

    Args:
        tell: is told which these are, before they are read; again where a run that goes on removes them meanwhile.

    Raises:
        InputError: a part is not trained yet.
    """
    for _ in range(_TRIES):
        standing = stands_for(run)
        check_trained(run, standing)
        tell(standing)
        with contextlib.suppress(Gone):
            return _loaded(standing)
    raise InputError(
        f"{run.workdir} removes its checkpoints faster than they are read: raise config.{standing.stage}.keep"
    )


def check_trained(run: Run, standing: Standing) -> None:
    """Raises `InputError` where there are no weights of a part that generates a video."""
    missing = [name for name in needed_parts(run.config) if not standing.has(name)]
    if missing:
        raise InputError(
            f"{run.workdir} holds no trained {' and no '.join(missing)} yet: let its training finish first"
        )


def _loaded(standing: Standing) -> "Sampler":
    run, needed = standing.run, needed_parts(standing.run.config)
    cinema = Cinema(run.config, run.part_configs(needed))
    try:
        params = {path: x for name in needed for path, x in standing.params(name).items()}
        placed = {path: jax.device_put(np.asarray(x)) for path, x in cinema.held(params).items()}
    except Exception:
        # What is wrong with files that are going away says nothing.
        standing.check_there()
        raise
    standing.check_there()
    return Sampler(cinema, placed, run.preprocessor().whole())


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


class Sampler:
    """Generates videos with one set of parameters; each shape is compiled once."""

    def __init__(self, cinema: Cinema, params: Params, preprocessor: Preprocessor | None):
        self.cinema, self.params, self.preprocessor = cinema, params, preprocessor
        self.read = jax.jit(cinema.conditions)
        self.step = jax.jit(self._guided_step, static_argnums=1)
        self._discrete_step = jax.jit(self._guided_discrete_step, static_argnums=1)
        self.decode = jax.jit(cinema.decode_video)

    def settings(self, **changes: float | int | str | None) -> Settings:
        """The run's own settings, with those changes that are not None; raises like `checked_settings`."""
        return checked_settings(self.cinema.config, self.cinema.part_configs, **changes)

    def __call__(
        self, requests: Sequence[Request], settings: Settings, progress: Callable[[Any], Any] = lambda steps: steps
    ) -> UInt8[np.ndarray, "B frames height width 3"]:
        """The videos of a batch of requests.

        Args:
            progress: wraps the iterator over the latents of each step (a progress bar), which come as the device has
                computed them.
        """
        return distributed.fetch(self.decode(self.params, self.latents(requests, settings, progress)))

    def latents(
        self, requests: Sequence[Request], settings: Settings, progress: Callable[[Any], Any] = lambda steps: steps
    ) -> Float[Array, "B F H W C"]:
        """The same before the VAE decodes them."""
        branches, factors = self.guidance(settings)
        size = settings.height, settings.width
        conditions = {branch: self.conditions(requests, branch, size) for branch in branches}
        vae = self.cinema.part(self.params, "vae")
        shape = vae.latent_shape(settings.frames, settings.height, settings.width)
        keys = jnp.stack([jax.random.key(request.seed, impl="threefry2x32") for request in requests])
        noise = flow.sample_noise(keys, shape)
        if settings.solver in DISCRETE_SOLVERS:
            states = self._discrete(noise, keys, settings, conditions, factors)
        else:
            step = functools.partial(self.step, self.params, branches, jnp.asarray(factors[0]), conditions)
            states = sample_steps(step, noise, self._flow_steps(settings))
        *_, latents = progress(_computed(states))
        return latents

    def guidance(self, settings: Settings) -> tuple[tuple[Branch, ...], Float[np.ndarray, "steps branches"]]:
        """The branches that take part, and their factors in each step: they sum to 1."""
        scales, flow = (settings.guidance_text, settings.guidance_reference), self.cinema.config.flow
        branches, count = tuple(guidance_coefficients(*scales)), settings.steps
        of_steps = [scales] * count
        if settings.solver in DISCRETE_SOLVERS and flow.dynamic_guidance:
            timesteps = self.cinema.config.schedule.timesteps(count)
            of_steps = [tuple(dynamic_guidance(scale, count, int(t)) for scale in scales) for t in timesteps]
        return branches, np.array([branch_factors(branches, *scales) for scales in of_steps], np.float32)

    def _flow_steps(self, settings: Settings) -> Float[np.ndarray, "steps 10"]:
        config = self.cinema.config
        if settings.spacing == "schedule":
            return solver_steps(settings.solver, config.schedule.time_grid(settings.steps))
        if settings.spacing == "timesteps":
            return solver_steps(settings.solver, *timestep_grid(settings.steps, settings.shift))
        # Under its lowest noise level a network on a discrete schedule knows nothing.
        smallest = config.schedule.flow_times()[0] if config.flow.prediction == "v_prediction" else 0.0
        grid = time_grid(settings.steps, shift=settings.shift, smallest=float(smallest), spacing=settings.spacing)
        return solver_steps(settings.solver, grid)

    def _discrete(self, z, keys, settings: Settings, conditions, factors) -> Iterator[Float[Array, "B F H W C"]]:
        """As the transformer's own pipeline samples it."""
        config, state, noise = self.cinema.config, discrete_start(z), None
        for i, row in enumerate(discrete_steps(settings.solver, config.schedule, settings.steps)):
            if settings.solver == "dpm":
                noise = flow.sample_noise(jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1), z.shape[1:])
            state = self._discrete_step(self.params, tuple(conditions), factors[i], conditions, state, row, noise)
            yield state.z

    def conditions(
        self, requests: Sequence[Request], branch: Branch, size: tuple[int, int] | None = None
    ) -> Conditions:
        """The conditions of one guidance branch: exactly what training shows where it drops text or references.

        Args:
            size: height and width of the video; those of training if None.
        """
        preprocessor = self.preprocessor if size is None else self.preprocessor.at(*size)
        examples = [
            preprocessor.conditions(
                request.prompt if branch.text else request.negative_prompt, request.references, branch.references
            )
            for request in requests
        ]
        return self.read(self.params, collate(examples))

    def _guided_step(self, params, branches, factors, conditions, state, row):
        return solver_step(_guided(self.cinema.velocity, params, branches, factors, conditions), state, row)

    def _guided_discrete_step(self, params, branches, factors, conditions, state, row, noise):
        return discrete_step(_guided(self.cinema.predict_v, params, branches, factors, conditions), state, row, noise)


def progress_bar(count: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A bar over `count` steps, for `Sampler`: until the first is computed, the compiler is at work, if anybody."""

    def shown(steps: Iterable[Any]) -> Iterator[Any]:
        with tqdm(total=count, desc="compile", unit="step") as bar:
            for latents in steps:
                if bar.n == 0:
                    bar.set_description("sample", refresh=False)
                    # So that the time left is that of steps alone.
                    bar.unpause()
                bar.update()
                yield latents

    return shown


def _computed(states: Iterator[Array]) -> Iterator[Array]:
    """The states, each once the device has computed it, so that whoever counts them counts work that is done.

    The next one is dispatched before, so that the device never waits for Python.
    """
    waiting = next(states)
    for state in states:
        yield jax.block_until_ready(waiting)
        waiting = state
    yield jax.block_until_ready(waiting)


def _guided(network, params, branches, factors, conditions):
    """A method of `Cinema` as a guided field of z and time."""
    coefficients = dict(zip(branches, factors, strict=True))
    # On accelerators one video of the released size is work enough, and memory is short.
    return guided(functools.partial(network, params), conditions, coefficients, in_turn=platform() != "cpu")
