"""The pipelines of diffusers that this project reads and writes: what their parts are, and how each is sampled."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cinema_jax.config import Config, default, to_dict
from cinema_jax.diffusion.schedule import (
    EULER_SCHEDULER,
    FLOW_SCHEDULER,
    SCHEDULERS,
    flow_shift_from_hf,
    flow_shift_to_hf,
    schedule_from_hf,
    schedule_to_hf,
)
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.fit import reads_pictures
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.transformer_config import WanConfig


@dataclasses.dataclass(frozen=True)
class Released:
    """One pipeline."""

    # Its class, in model_index.json.
    name: str
    # The configs of its transformer and VAE, and what its text encoder is called.
    dit: type
    vae: type
    text: str
    # The classes of schedulers that it takes.
    schedulers: tuple[str, ...]
    # Whether it has such a transformer, by its config.
    reads: Callable[[Any], bool]
    # The config that samples a folder as diffusers does by default, of the folder, its index and its scheduler.
    values: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], ConfigDict]

    def takes(self, configs: Mapping[str, Any], scheduler: str) -> bool:
        """Whether it opens a folder with parts of these configs, by their names, and a scheduler of this class."""
        if not {"dit", "vae", "t5"} <= configs.keys() or scheduler not in self.schedulers:
            return False
        kinds = type(configs["dit"]), type(configs["vae"]), configs["t5"].model_type
        return kinds == (self.dit, self.vae, self.text) and self.reads(configs["dit"])


def _text_alone() -> ConfigDict:
    values = default()
    values.weights.update(dict.fromkeys(values.weights, ""))
    values.condition.conditioner, values.condition.entities = "t5", False
    return values


def _cogvideox(folder: Path, index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> ConfigDict:
    dit, vae = parts.read_config("dit", folder / "transformer"), parts.read_config("vae", folder / "vae")
    schedule = _read(schedule_from_hf, folder, scheduler)
    values = _text_alone()
    values.condition.text_tokens = dit.max_text_seq_length
    scale = vae.spatial_compression
    values.data.frames, values.data.fps = dit.sample_frames, 8.0
    values.data.height, values.data.width = scale * dit.sample_height, scale * dit.sample_width
    solvers = {published: ours for ours, published in SCHEDULERS.items()}
    flow = values.flow
    flow.prediction, flow.solver = "v_prediction", solvers.get(scheduler.get("_class_name"), "ddim")
    # The published example of 5b, whose scheduler is DPM, lets the guidance grow.
    flow.dynamic_guidance = flow.solver == "dpm"
    flow.sample_steps, flow.guidance_text, flow.guidance_reference = 50, 6.0, 6.0
    values.schedule.update(vars(schedule))
    return values


def _read(of_scheduler: Callable[[Mapping[str, Any]], Any], folder: Path, scheduler: Mapping[str, Any]) -> Any:
    try:
        return of_scheduler(scheduler)
    except InputError as error:
        raise InputError(f"{folder / 'scheduler' / 'scheduler_config.json'}: {error}") from None


def _wan(folder: Path, index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> ConfigDict:
    """480p, as its pipeline and its own command line sample the released networks."""
    if index.get("boundary_ratio") is not None or (folder / "transformer_2").is_dir():
        raise InputError(f"{folder} holds the two transformers of a Wan2.2, which are not read yet; Wan2.1's one is")
    if index.get("expand_timesteps"):
        raise InputError(f"{folder} holds a Wan2.2 whose tokens have times of their own, which is not read yet")
    values = _text_alone()
    values.dit_model = ConfigDict(to_dict(WanConfig()))
    values.condition.text_tokens, values.condition.clean_text = WanConfig.max_text_seq_length, True
    values.data.frames, values.data.fps, values.data.height, values.data.width = 81, 16.0, 480, 832
    flow = values.flow
    flow.prediction, flow.solver, flow.spacing = "velocity", "unipc", "timesteps"
    flow.shift = _read(flow_shift_from_hf, folder, scheduler)
    flow.sample_steps, flow.guidance_text, flow.guidance_reference = 50, 5.0, 5.0
    return values


RELEASED = (
    Released(
        "CogVideoXPipeline",
        CogVideoXConfig,
        CogVideoXVAEConfig,
        "t5",
        tuple(SCHEDULERS.values()),
        lambda dit: True,
        _cogvideox,
    ),
    Released(
        "WanPipeline",
        WanConfig,
        WanVAEConfig,
        "umt5",
        (FLOW_SCHEDULER, EULER_SCHEDULER),
        lambda dit: not reads_pictures(dit),
        _wan,
    ),
    # Read for its parts, which BindWeave's transformer goes with, and never written.
    Released("WanImageToVideoPipeline", WanConfig, WanVAEConfig, "umt5", (), lambda dit: False, _wan),
)


def scheduler_of(config: Config) -> dict[str, Any]:
    """The scheduler_config.json for a run's config."""
    flow = config.flow
    if flow.prediction == "v_prediction":
        return schedule_to_hf(config.schedule, "dpm" if flow.solver == "dpm" else "ddim")
    if flow.spacing == "timesteps":
        return flow_shift_to_hf(flow.shift)
    return {"_class_name": EULER_SCHEDULER, "num_train_timesteps": 1000, "shift": flow.shift}
