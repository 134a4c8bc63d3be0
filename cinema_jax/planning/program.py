"""The real train step and sampler of a config, as programs over abstract arrays: nothing is allocated or read."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from cinema_jax.cinema import Cinema
from cinema_jax.devices import sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.experiment import parts
from cinema_jax.experiment.fit import outer_sizes
from cinema_jax.experiment.run import Run
from cinema_jax.planning.blank import blank_examples, blank_preprocessor
from cinema_jax.sampling.programs import reading
from cinema_jax.sampling.requests import needed_parts
from cinema_jax.sampling.room import Offload
from cinema_jax.sampling.sampler import planned_sampler
from cinema_jax.training import state, work
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.training.phases import Phase, batch_shapes
from cinema_jax.training.stages import STAGES, make_step
from cinema_jax.training.state import TrainState
from cinema_jax.weights.quantised import Kind


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the abstract arguments that it is lowered for."""

    function: Any
    arguments: tuple[Any, ...]
    state: TrainState | None
    frozen: Mapping[str, jax.ShapeDtypeStruct]
    # Counts the products of one call, recomputation included.
    flops: Callable[[], int]
    # Whose step it is; None: a sampler's program.
    cinema: Cinema | None = None
    # Of `frozen`, what the function is not given: parts that lie on the chips for other programs.
    beside: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)


def part_configs(run: Run, names: tuple[str, ...]) -> dict[str, Any]:
    """The sizes of parts: of their weights where they are named, else of the config's own sections.

    Raises:
        InputError: they do not fit each other.
    """

    def size(name: str) -> Any:
        if run.folder(name) is not None:
            return run.part_config(name)
        return dataclasses.replace(getattr(run.config, f"{name}_model"), **outer_sizes(name, size, run.config))

    configs = {name: size(name) for name in names}
    run.check_fit(configs)
    return configs


def train_program(run: Run, stage_name: str, mesh: Mesh) -> Program:
    """The train step of a stage on `mesh`, which may be of devices that are not at hand."""
    stage, config = STAGES[stage_name], run.config.of_stage(stage_name)
    cinema = Cinema(run.config, part_configs(run, stage.needed(run.config)))
    trained, frozen = stage.trained(run.config, cinema.shapes)
    optimizer = make_optimizer(config.optimizer, config.steps, config.earlier_rates)
    params = {path: jax.ShapeDtypeStruct(cinema.shapes[path].shape, cinema.state_dtype) for path in trained}
    held = jax.eval_shape(cinema.held, {path: cinema.shapes[path] for path in frozen})
    abstract_state, held = state.abstract(params, optimizer, mesh), sharding.abstract(held, mesh, WEIGHTS)
    step = make_step(stage, cinema, optimizer, abstract_state)
    batch = abstract_batch(cinema, stage_name, config.batch_size, mesh)
    count = functools.partial(work.work, stage, cinema, trained, batch, run.config.dit_model.remat)
    return Program(step, (abstract_state, held, batch), abstract_state, held, lambda: count().flops, cinema)


def abstract_batch(
    cinema: Cinema, stage: str, size: int, mesh: Mesh | None = None, held_out: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `size` examples of a stage, on `mesh` if there is one; of training, or held out."""
    shapes = batch_shapes(blank_examples(cinema, stage, held_out), Phase(0, 1, stage, STAGES[stage].example, size, ""))
    if mesh is None:
        return shapes
    place = sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()}


def sampler_programs(run: Run, mesh: Mesh, offload: Offload = False, weights: Kind | None = None) -> dict[str, Program]:
    """What generates one video, in the order in which it runs: the conditions, a guided step, the decoder.

    Args:
        offload: what is on the chips only while it is in use.
        weights: what large kernels are, if not numbers.

    Raises:
        InputError: no video of the config's size can be generated.
    """
    names = needed_parts(run.config)
    quantised = {name: weights for name in names if weights and name in parts.QUANTISED}
    cinema = Cinema(run.config, reading(part_configs(run, names)), quantised)
    sampler = planned_sampler(cinema, blank_preprocessor(cinema), mesh, streams=offload == "layers")
    programs = {}
    for name, (function, arguments) in sampler.programs(sampler.settings()).items():
        used = arguments[0]
        beside = {} if offload else {path: x for path, x in sampler.params.items() if path not in used}
        flops = functools.partial(work.products, function, arguments)
        programs[name] = Program(function, arguments, None, {**used, **beside}, flops, beside=beside)
    return programs
