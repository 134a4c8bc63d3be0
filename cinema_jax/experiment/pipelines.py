"""A folder in the layout of one of diffusers' pipelines as a checkpoint, read where it lies.

One that this project exported holds the AlignerNet and the multimodal LLM beside diffusers' own parts, and
`cinema_config.json` says how they work together.
"""

from pathlib import Path

from cinema_jax.config import Config, parse
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.released import RELEASED

INDEX = "model_index.json"
CINEMA = "cinema_config.json"
# Of cinema_config.json.
FORMAT = 1
# What a folder that no pipeline of diffusers' fits says it is.
OWN_PIPELINE = "CinemaPipeline"
# Our parts and the folders of a pipeline. As in published ones, the MLLM's tokenizer lies beside its weights.
FOLDERS = {
    "vae": "vae",
    "t5": "text_encoder",
    "dit": "transformer",
    "clip": "image_encoder",
    "t5_tokenizer": "tokenizer",
    "aligner": "aligner",
    "mllm": "mllm",
    "tokenizer": "mllm",
}
NEEDED = ("vae", "t5", "dit", "t5_tokenizer")


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

    By default its text encoder alone reads the prompt, in 50 steps; noise schedule or shift are those in the folder's
    own config files, as are the sizes of the video if they say any.

    Raises:
        InputError: it is another pipeline, or lacks a part, or a config file describes what this project has not.
    """
    if (folder / CINEMA).is_file():
        said = parts.read_json(folder / CINEMA)
        if said.get("format") != FORMAT:
            raise InputError(f"{folder / CINEMA}: format is {said.get('format')!r}; this version reads {FORMAT}")
        return parse(said.get("config"))
    index = parts.read_json(folder / INDEX)
    released = next((one for one in RELEASED if one.name == index.get("_class_name")), None)
    if released is None:
        names = ", ".join(one.name for one in RELEASED)
        raise InputError(f"{folder / INDEX}: _class_name is {index.get('_class_name')!r}; accepted: {names}")
    needed = (*(FOLDERS[part] for part in NEEDED), "scheduler")
    if missing := [part for part in needed if not (folder / part).is_dir()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; a {released.name} has them")
    for name, kind in (("dit", released.dit), ("vae", released.vae)):
        config = parts.read_config(name, folder / FOLDERS[name])
        if not isinstance(config, kind):
            called = parts.kind_of(name, config).names[0]
            raise InputError(f"{folder / FOLDERS[name]} holds a {called}, which a {released.name} does not have")
    scheduler = parts.read_json(folder / "scheduler" / "scheduler_config.json")
    return parse(released.values(folder, index, scheduler))
