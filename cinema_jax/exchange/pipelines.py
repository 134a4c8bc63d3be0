"""A folder in the layout of diffusers' CogVideoX pipelines as a checkpoint, read where it lies.

One that this project exported holds the AlignerNet and the multimodal LLM beside diffusers' own parts, and
`cinema_config.json` says how they work together.
"""

from pathlib import Path

from cinema_jax import parts
from cinema_jax.config import Config, default, parse
from cinema_jax.diffusion.schedule import SCHEDULERS, schedule_from_hf
from cinema_jax.errors import InputError

INDEX = "model_index.json"
CINEMA = "cinema_config.json"
# Of cinema_config.json.
FORMAT = 1
PIPELINE = "CogVideoXPipeline"
# What a folder that no pipeline of diffusers' fits says it is.
OWN_PIPELINE = "CinemaPipeline"
# Our parts and the folders of a pipeline. As in published ones, the MLLM's tokenizer lies beside its weights.
FOLDERS = {
    "vae": "vae",
    "t5": "text_encoder",
    "dit": "transformer",
    "t5_tokenizer": "tokenizer",
    "aligner": "aligner",
    "mllm": "mllm",
    "tokenizer": "mllm",
}
NEEDED = ("vae", "t5", "dit", "t5_tokenizer")
FPS = 8.0


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is laid out as a pipeline of diffusers."""
    return (folder / INDEX).is_file()


def without_sources(values: dict) -> dict:
    """A config whose parts come from the checkpoint it lies in and from nowhere else.

    What says where something lay on this machine is nobody's business: of data and subjects the last names are left.
    """
    data = values["data"]
    names = {name: Path(data[name]).name for name in ("path", "subjects")}
    return values | {"init": "", "weights": dict.fromkeys(values["weights"], ""), "data": data | names}


def pipeline_config(folder: Path) -> Config:
    """What samples the pipeline in `folder`: as it was exported, or as diffusers does by default.

    By default T5 alone reads the prompt, in 50 steps; sizes, frames and the noise schedule are those in the folder's
    own config files.

    Raises:
        InputError: it is another pipeline, or lacks a part, or a config file describes what this project has not.
    """
    if (folder / CINEMA).is_file():
        said = parts.read_json(folder / CINEMA)
        if said.get("format") != FORMAT:
            raise InputError(f"{folder / CINEMA}: format is {said.get('format')!r}; this version reads {FORMAT}")
        return parse(said.get("config"))
    name = parts.read_json(folder / INDEX).get("_class_name")
    if name != PIPELINE:
        raise InputError(f"{folder / INDEX}: _class_name is {name!r}; accepted: {PIPELINE}")
    needed = (*(FOLDERS[part] for part in NEEDED), "scheduler")
    if missing := [part for part in needed if not (folder / part).is_dir()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; a CogVideoX pipeline has them")
    dit, vae = parts.read_config("dit", folder / "transformer"), parts.read_config("vae", folder / "vae")
    scheduler = parts.read_json(folder / "scheduler" / "scheduler_config.json")
    values = default()
    values.weights.update(dict.fromkeys(values.weights, ""))
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
