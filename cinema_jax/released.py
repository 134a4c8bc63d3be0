"""A folder in the layout of diffusers' CogVideoX pipelines as a checkpoint, read where it lies."""

from pathlib import Path

from cinema_jax import parts
from cinema_jax.config import Config, default, parse
from cinema_jax.diffusion.schedule import SCHEDULERS, schedule_from_hf
from cinema_jax.errors import InputError

INDEX = "model_index.json"
PIPELINES = ("CogVideoXPipeline",)
# Our parts and the folders of a pipeline.
FOLDERS = {"vae": "vae", "t5": "text_encoder", "dit": "transformer", "t5_tokenizer": "tokenizer"}
FPS = 8.0


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is laid out as a pipeline of diffusers."""
    return (folder / INDEX).is_file()


def pipeline_config(folder: Path) -> Config:
    """What samples the pipeline in `folder` as diffusers does by default: T5 alone reads the prompt, 50 steps.

    Sizes, frames and the noise schedule are those in the folder's own config files.

    Raises:
        InputError: it is another pipeline, or lacks a part, or a config file describes what this project has not.
    """
    name = parts.read_json(folder / INDEX).get("_class_name")
    if name not in PIPELINES:
        raise InputError(f"{folder / INDEX}: _class_name is {name!r}; accepted: {', '.join(PIPELINES)}")
    missing = [part for part in (*FOLDERS.values(), "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise InputError(f"{folder} has no {', '.join(missing)}; a CogVideoX pipeline has them")
    dit, vae = parts.read_config("dit", folder / "transformer"), parts.read_config("vae", folder / "vae")
    scheduler = parts.read_json(folder / "scheduler" / "scheduler_config.json")
    values = default()
    values.weights.update({part: str(folder / where) for part, where in FOLDERS.items()})
    values.condition.conditioner, values.condition.entities = "t5", False
    values.condition.text_tokens = dit.max_text_seq_length
    scale = vae.spatial_compression
    values.data.frames, values.data.fps = dit.sample_frames, FPS
    values.data.height, values.data.width = scale * dit.sample_height, scale * dit.sample_width
    solvers = {published: ours for ours, published in SCHEDULERS.items()}
    flow = values.flow
    flow.prediction, flow.solver = "v_prediction", solvers.get(scheduler.get("_class_name"), "ddim")
    # The published example of 5b, whose scheduler is DPM, lets the guidance grow.
    flow.dynamic_guidance = flow.solver == "dpm"
    flow.sample_steps, flow.guidance_text, flow.guidance_reference = 50, 6.0, 6.0
    values.schedule.update(vars(schedule_from_hf(scheduler)))
    return parse(values)


def check_schedule(config: Config) -> None:
    """Refuse a config whose noise schedule is not that of the pipeline in `config.init`.

    Raises:
        InputError: naming the fields that differ.
    """
    folder = Path(config.init)
    if not config.init or not is_pipeline(folder) or config.flow.prediction != "v_prediction":
        return
    file = folder / "scheduler" / "scheduler_config.json"
    theirs, ours = vars(schedule_from_hf(parts.read_json(file))), vars(config.schedule)
    if wrong := [f"{name} is {ours[name]}, not {theirs[name]}" for name in ours if ours[name] != theirs[name]]:
        raise InputError(f"config.schedule differs from {file}: {', '.join(wrong)}")
