"""Videos from prompts and references: conditions, guidance and sampler together."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from cinema_jax.cinema import Batch, Cinema, Conditions, Params
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.devices import distributed, sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.diffusion import flow
from cinema_jax.diffusion.config import DISCRETE_SOLVERS
from cinema_jax.diffusion.discrete import discrete_start, discrete_steps, dynamic_guidance
from cinema_jax.diffusion.guidance import Branch, branch_factors, guidance_coefficients
from cinema_jax.diffusion.samplers import sample_steps, solver_steps, time_grid, timestep_grid
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import Gone, Standing, line, stands_for
from cinema_jax.models.chunks import latent_shape
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.sampling import room
from cinema_jax.sampling.programs import Programs, condition_parts, cut, of_parts, reading, streamed
from cinema_jax.sampling.requests import Request, Settings, checked_settings, needed_parts
from cinema_jax.sampling.room import Offload
from cinema_jax.weights.quantised import Dequantised, Kind

logger = logging.getLogger(__name__)

# How often weights are looked for anew that a run which goes on has removed.
_TRIES = 3


def load_sampler(checkpoint: str | Path = "packaged", **placement: Any) -> tuple[Run, "Sampler"]:
    """A checkpoint by its name on the command line: a finished run, a released pipeline, or the packaged demo.

    Args:
        placement: where the weights lie, and as what: of `sampler_of`.
    """
    run = Run.load(parts.checkpoint_folder(str(checkpoint)))
    tell = functools.partial(line, str(checkpoint))
    return run, sampler_of(run, lambda standing: logger.info("%s", tell(standing)), **placement)


def sampler_of(
    run: Run,
    tell: Callable[[Standing], Any] = lambda standing: None,
    *,
    mesh: Mesh | None = None,
    offload: Offload = False,
    weights: Kind | None = None,
    settings: Settings | None = None,
    count: int = 1,
    standing: Standing | None = None,
) -> "Sampler":
    """That of a run which is loaded, with the weights that it stands for (`experiment/standing.py`).

    Args:
        tell: is told which these are, before they are read; again where a run that goes on removes them meanwhile.
        mesh: what it runs on; None: `room.sampler_mesh()`, all devices.
        offload: parts lie in the memory of the hosts while they are not in use; "layers": the transformer's layers also
            while it is in use, but for two of them.
        weights: as what large kernels lie there: codes of "int8" or "fp8"; None: as they are stored.
        settings: of the largest batch that will be asked for: where the devices' memory is known, whether it has room
            is then known before weights are read.
        count: of the requests of that batch.
        standing: the weights, where somebody has found them already: a checkpoint's are compared with their sums then.

    Raises:
        InputError: a part is not trained yet, or there is no room.
    """
    mesh = room.sampler_mesh() if mesh is None else mesh
    standing = standing or stands_for(run)
    check_trained(run, standing)
    sampler = abstract_sampler(run, standing, mesh, weights, streams=offload == "layers")
    if settings is not None and (limit := room.memory(mesh)):
        room.check(sampler, settings, count, limit, offload=offload)
    for _ in range(_TRIES):
        standing = standing or stands_for(run)
        check_trained(run, standing)
        tell(standing)
        with contextlib.suppress(Gone):
            sampler.params = _placed(sampler.cinema, standing, mesh, offload)
            return sampler
        stage, standing = standing.stage, None
    raise InputError(f"{run.workdir} removes its checkpoints faster than they are read: raise config.{stage}.keep")


def abstract_sampler(
    run: Run, standing: Standing, mesh: Mesh, weights: Kind | None = None, streams: bool = False
) -> "Sampler":
    """What `sampler_of` loads, of abstract weights; raises like it where parts do not fit or are not there."""

    def kind(name: str) -> Kind | None:
        stored = (x.kind for x in standing.arrays(name).values() if isinstance(x, Dequantised))
        return weights or next(stored, None)

    names = needed_parts(run.config)
    quantised = {name: found for name in names if name in parts.QUANTISED and (found := kind(name))}
    cinema = Cinema(run.config, reading(run.part_configs(names)), quantised)
    return planned_sampler(cinema, run.preprocessor().whole(), mesh, streams)


def check_trained(run: Run, standing: Standing) -> None:
    """Raises `InputError` where there are no weights of a part that generates a video."""
    missing = [name for name in needed_parts(run.config) if not standing.has(name)]
    if missing:
        raise InputError(
            f"{run.workdir} holds no trained {' and no '.join(missing)} yet: let its training finish first"
        )


def _placed(cinema: Cinema, standing: Standing, mesh: Mesh, offload: Offload) -> Params:
    """The weights, each device's slices read from the files straight to where they lie."""
    try:
        params: Params = {}
        for name in cinema.part_configs:
            # Without what sampling has no use for, as the MLLM's output layer.
            own = {path: x for path, x in standing.params(name).items() if path in cinema.shapes}
            params |= parts.with_codes(name, own, cinema.quantised.get(name))
        placed = sharding.place(cinema.held(params), mesh, WEIGHTS, sharding.HOST if offload else None)
    except Exception:
        # What is wrong with files that are going away says nothing.
        standing.check_there()
        raise
    standing.check_there()
    return placed


def planned_sampler(cinema: Cinema, preprocessor: Preprocessor, mesh: Mesh, streams: bool = False) -> "Sampler":
    """A sampler of abstract weights, whose `programs` are those of a real one on this mesh.

    Args:
        streams: as for `Sampler`.

    Raises:
        InputError: layers whose kernels are codes cannot be streamed.
    """
    if streams and (kind := cinema.quantised.get("dit")):
        # XLA lays them out anew before it takes a layer: all of them, on the device, in every turn (libtpu 0.0.52).
        raise InputError(
            f"layers cannot be offloaded one by one where their kernels are {kind} codes: take --offload alone, or "
            "weights that are no codes"
        )
    params = sharding.abstract(jax.eval_shape(cinema.held, cinema.shapes), mesh, WEIGHTS)
    return Sampler(cinema, params, preprocessor, mesh, streams)


class Sampler:
    """Generates videos with one set of parameters; each shape is compiled once.

    Args:
        params: of all parts that it needs, on the mesh; or in `sharding.HOST` memory: each part is then on the devices
            only while it is used.
        mesh: what the programs are split over, by `devices/sharding.py`: videos over its batch axes, their tokens over
            `context`, weights by the table. None: the mesh in use, which splits no batch.
        streams: the transformer's layers stay in `sharding.HOST` memory while it samples; its programs fetch them.
    """

    def __init__(
        self,
        cinema: Cinema,
        params: Params,
        preprocessor: Preprocessor | None,
        mesh: Mesh | None = None,
        streams: bool = False,
    ):
        self.cinema, self.params, self.preprocessor, self.mesh = cinema, params, preprocessor, mesh
        self._programs = Programs(cinema, mesh, streams)
        self._layout = self._programs.layout

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
        latents = self.latents(requests, settings, progress)
        return distributed.fetch(self.decode(self.params, latents, settings.tiled_decoding))

    def latents(
        self, requests: Sequence[Request], settings: Settings, progress: Callable[[Any], Any] = lambda steps: steps
    ) -> Float[Array, "B F H W C"]:
        """The same before the VAE decodes them."""
        branches, factors = self.guidance(settings)
        size = settings.height, settings.width, settings.frames
        shape = latent_shape(self.cinema.part_configs["vae"], settings.frames, *size[:2])
        keys = jnp.stack([jax.random.key(request.seed, impl="threefry2x32") for request in requests])
        noise, steps = flow.sample_noise(keys, shape), self._flow_steps(settings)
        with self._layout.in_use():
            conditions = self._conditions(requests, branches, size)
            params = self._present(self.params, ("dit",), after=conditions)
            z, whole = self._layout.on_rows(noise), self._layout.whole
            if steps is None:
                states = self._discrete(params, z, keys, settings, conditions, factors)
            else:
                step = functools.partial(self._programs.step, params, whole(factors[0]), conditions)
                states = sample_steps(lambda state, row: step(state, whole(row)), z, steps)
            for latents in progress(_computed(states)):
                last = latents
            return cut(last, len(requests))

    def guidance(self, settings: Settings) -> tuple[tuple[Branch, ...], Float[np.ndarray, "steps branches"]]:
        """The branches that take part, and their factors in each step: they sum to 1."""
        scales, flow = (settings.guidance_text, settings.guidance_reference), self.cinema.config.flow
        branches, count = tuple(guidance_coefficients(*scales)), settings.steps
        of_steps = [scales] * count
        if settings.solver in DISCRETE_SOLVERS and flow.dynamic_guidance:
            timesteps = self.cinema.config.schedule.timesteps(count)
            of_steps = [tuple(dynamic_guidance(scale, count, int(t)) for scale in scales) for t in timesteps]
        return branches, np.array([branch_factors(branches, *scales) for scales in of_steps], np.float32)

    def conditions(
        self, requests: Sequence[Request], branch: Branch, size: tuple[int, int, int] | None = None
    ) -> Conditions:
        """The conditions of one guidance branch: exactly what training shows where it drops text or references.

        Args:
            size: height, width and frames of the video; those of training if None.
        """
        with self._layout.in_use():
            return cut(self._conditions(requests, (branch,), size)[branch], len(requests))

    def read(self, params: Params, batch: Batch) -> Conditions:
        """What a batch as `collate` makes it tells the transformer: `Cinema.conditions`, compiled."""
        return self._of_rows(self._programs.read, params, condition_parts(self.cinema.config), batch)

    def decode(
        self, params: Params, latents: Float[Array | np.ndarray, "B F H W C"], tiled: bool | None = None
    ) -> UInt8[Array, "B frames height width 3"]:
        """The videos of latents: `Cinema.decode_video`, compiled."""
        tiled = self.cinema.config.flow.tiled_decoding if tiled is None else tiled
        return self._of_rows(self._programs.decode[tiled], params, ("vae",), latents)

    def encode(
        self, params: Params, videos: UInt8[Array | np.ndarray, "B frames height width 3"]
    ) -> Float[Array, "B F H W C"]:
        """The latents of videos: `Cinema.encode_video`, compiled."""
        return self._of_rows(self._programs.encode, params, ("vae",), videos)

    def programs(self, settings: Settings, count: int = 1) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
        """What is computed for `count` requests: see `Programs.planned`."""
        solver = settings.solver if settings.solver in DISCRETE_SOLVERS else None
        video = settings.frames, settings.height, settings.width
        branches, count = self.guidance(settings)[0], self._layout.filled(count)
        example = self.preprocessor.at(*video[1:], video[0]).conditions("", ())
        tiled = settings.tiled_decoding
        return self._programs.planned(self.params, example, branches, video, solver, count, tiled)

    def _present(self, params: Params, names: tuple[str, ...], after: Any = None) -> Params:
        """The parameters of some parts on the devices; of those that come there now, once `after` is computed."""
        own = of_parts(params, names)
        if any(sharding.is_away(x) for x in own.values()):
            # Till then the parts before are there, too.
            jax.block_until_ready(after)
        stay = {path: x for path, x in own.items() if self._programs.streams and streamed(path)}
        return {**own, **sharding.on_devices({path: x for path, x in own.items() if path not in stay})}

    def _of_rows(self, function: Callable[..., Any], params: Params, names: tuple[str, ...], batch: Any) -> Any:
        count = len(jax.tree.leaves(batch)[0])
        with self._layout.in_use():
            return cut(function(self._present(params, names, after=batch), self._layout.on_rows(batch)), count)

    def _conditions(self, requests, branches, size) -> dict[Branch, Conditions]:
        """Of as many rows as the mesh wants."""
        preprocessor = self.preprocessor if size is None else self.preprocessor.at(*size)
        # Of all branches together: the parts that make them come and go once.
        params, found = self._present(self.params, condition_parts(self.cinema.config)), {}
        for branch in branches:
            examples = [
                preprocessor.conditions(
                    request.prompt if branch.text else request.negative_prompt, request.references, branch.references
                )
                for request in requests
            ]
            found[branch] = self._programs.read(params, self._layout.on_rows(collate(examples)))
        return found

    def _flow_steps(self, settings: Settings) -> Float[np.ndarray, "steps 10"] | None:
        """Those of a flow; None: the solver is a discrete one."""
        config = self.cinema.config
        if settings.solver in DISCRETE_SOLVERS:
            return None
        if settings.spacing == "schedule":
            return solver_steps(settings.solver, config.schedule.time_grid(settings.steps))
        if settings.spacing == "timesteps":
            return solver_steps(settings.solver, *timestep_grid(settings.steps, settings.shift))
        # Under its lowest noise level a network on a discrete schedule knows nothing.
        smallest = config.schedule.flow_times()[0] if config.flow.prediction == "v_prediction" else 0.0
        grid = time_grid(settings.steps, shift=settings.shift, smallest=float(smallest), spacing=settings.spacing)
        return solver_steps(settings.solver, grid)

    def _discrete(
        self, params, z, keys, settings: Settings, conditions, factors
    ) -> Iterator[Float[Array, "B F H W C"]]:
        """As the transformer's own pipeline samples it."""
        config, whole, state, noise = self.cinema.config, self._layout.whole, discrete_start(z), None
        for i, row in enumerate(discrete_steps(settings.solver, config.schedule, settings.steps)):
            if settings.solver == "dpm":
                drawn = flow.sample_noise(jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1), z.shape[1:])
                noise = self._layout.on_rows(drawn)
            state = self._programs.discrete_step(params, whole(factors[i]), conditions, state, whole(row), noise)
            yield state.z


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
