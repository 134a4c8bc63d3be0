"""The flags of the commands that sample: from which checkpoint, and how."""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from cinema_jax.commands import command
from cinema_jax.devices.axes import AXES
from cinema_jax.diffusion.config import SOLVERS
from cinema_jax.errors import InputError

logger = logging.getLogger(__name__)

# Of one axis; -1 takes the devices that the others leave.
_SIZE = re.compile(r"-1|[0-9]{1,9}")

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "packaged",
    "Workdir of a training run, an import, or a folder (or hub repository) in the layout of diffusers; "
    '"packaged" is the demo that ships with the project.',
)
INIT = flags.DEFINE_string(
    "init",
    "",
    "Where the parts that the run did not train are on this machine, if not where its config says: a folder or hub "
    "repository, as for config.init.",
)
_STEPS = flags.DEFINE_integer("steps", None, "Sampler steps; by default as in the run's config.", lower_bound=1)
_SOLVER = flags.DEFINE_enum("solver", None, SOLVERS, "Sampler; by default as in the run's config.")
_GUIDANCE_TEXT = flags.DEFINE_float("guidance_text", None, "Guidance scale of the prompt; 1 is no guidance.")
_GUIDANCE_REFERENCE = flags.DEFINE_float(
    "guidance_reference", None, "Guidance scale of the references; 1 is no guidance."
)
_SHIFT = flags.DEFINE_float(
    "shift",
    None,
    "How much of the steps is spent near the noise, for networks of a flow; by default as in the run's config. Wan: 3 "
    "for 480p, 5 for 720p.",
    lower_bound=1e-3,
)
_TILED = flags.DEFINE_bool(
    "tiled_decoding",
    None,
    "Decode videos in overlapping tiles: less memory, slightly different videos; by default as in the run's config, "
    "and whole for released folders.",
)
_MESH = flags.DEFINE_string(
    "mesh",
    None,
    "What the work is split over, for example context=4 (the tokens of each video) or data=2,context=2 (videos, too); "
    "also fsdp and tensor, as for training. By default context, over all devices.",
)
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ("int8", "fp8"),
    "The large kernels of transformer, T5 and multimodal LLM as codes of one byte, with a scale for each output "
    "channel: they take half of bfloat16's memory; by default as they are stored.",
)
_OFFLOAD = command.offload_flag(
    "Keep each network in the host's memory while it is not in use: slower, and of several networks only one is on the "
    "devices at a time. --offload=layers: also the transformer's layers, of which two are there at a time."
)
_CACHE_FOLDER = "~/.cache/cinema_jax"
_CACHE = command.compilation_cache_flag(_CACHE_FOLDER)


def asked() -> dict[str, Any]:
    """What was said of the sampler: options of a `Pipeline`.

    Raises:
        InputError: a guidance scale is not finite, or `--mesh` is none.
    """
    mesh_sizes(_MESH.value)
    for flag in (_GUIDANCE_TEXT, _GUIDANCE_REFERENCE):
        if flag.value is not None and not math.isfinite(flag.value):
            raise InputError(f"--{flag.name} is {flag.value}; it must be a finite number (1 means no guidance)")
    return {flag.name: flag.value for flag in (_SOLVER, _STEPS, _GUIDANCE_TEXT, _GUIDANCE_REFERENCE, _SHIFT, _TILED)}


def mesh_sizes(said: str | None) -> dict[str, int]:
    """The sizes of a mesh's axes that `--mesh` names.

    Raises:
        InputError: it is of another form.
    """
    if said is None:
        return {}
    sizes = [entry.partition("=")[::2] for entry in said.replace(" ", "").split(",")]
    names = [axis for axis, _ in sizes]
    if not set(names) <= set(AXES) or len(set(names)) < len(names) or not all(_SIZE.fullmatch(x) for _, x in sizes):
        raise InputError(
            f"--mesh is {said!r}; accepted are sizes of the axes {', '.join(AXES)}, each once, such as context=4 or "
            "data=2,context=2"
        )
    return {axis: int(size) for axis, size in sizes}


def placement(settings: Any, count: int = 1, devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """Where the sampler is to run, for `Pipeline.load`.

    Args:
        settings: of the largest batch that it will be asked for.
        count: of the requests of that batch.
        devices: that it runs on; by default all, of all processes.

    Raises:
        InputError: the mesh does not fit the devices that there are.
    """
    from cinema_jax.sampling.room import sampler_mesh

    mesh = sampler_mesh(devices, **mesh_sizes(_MESH.value))
    return {"mesh": mesh, "offload": _OFFLOAD.value, "settings": settings, "count": count}


def keep_compiled() -> None:
    """Keep compiled programs where `--compilation_cache` says."""
    from cinema_jax.devices import compilation

    compilation.keep(_CACHE.value, _CACHE_FOLDER)


def pipeline() -> Any:
    """The `Pipeline` of `--checkpoint`; none of its weights are read yet."""
    from cinema_jax.sampling.pipeline import Pipeline

    return Pipeline.open(CHECKPOINT.value, init=INIT.value, weights=_WEIGHTS.value)


def tell(standing: Any) -> None:
    """Print which weights are used (`experiment.standing.Standing`): the first line of every command that samples."""
    from cinema_jax.devices import distributed
    from cinema_jax.experiment.standing import line

    if distributed.is_first():
        print(line(CHECKPOINT.value, standing), flush=True)
