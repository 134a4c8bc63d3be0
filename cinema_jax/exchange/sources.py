"""What a folder holds: which parts, and whether they fit each other."""

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.pipelines import is_pipeline
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.files import within

# Small files beside the weights: tokenizers, and what transformers keeps of templates and preprocessing.
COMPANIONS = (
    "*token*.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template.*",
    "*processor*.json",
    "generation_config.json",
)
# The tokenizer that a part's own folder may hold.
_TOKENIZERS = {"mllm": "tokenizer", "t5": "t5_tokenizer"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder and the parts (and tokenizers) in it; `run` is how they work together, where the folder says so."""

    folder: Path
    parts: Mapping[str, Path]
    run: Run | None = None
    # Files that hold a part's tensors in the place of those in its folder.
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def find(folder: Path) -> Source:
    """What `folder` holds: a pipeline of diffusers, a run, an import, or one part as diffusers or transformers save it.

    Raises:
        InputError: nothing that this project knows.
    """
    own = folder / "config.json"
    # Only a run's config has stages.
    if is_pipeline(folder) or (own.is_file() and "stages" in parts.read_json(own)):
        run = Run.load(folder)
        found = {name: run.folder(name) for name in (*parts.KINDS, *parts.TOKENIZERS)}
        return Source(folder, {name: where for name, where in found.items() if where}, run)
    if (folder / "high_noise_model").is_dir():
        raise InputError(f"{folder} holds the two transformers of a Wan2.2, which are not read yet; Wan2.1's one is")
    if not own.is_file():
        raise InputError(
            f"{folder} holds neither model_index.json nor config.json; accepted are a pipeline of diffusers, a run, or "
            "one network as diffusers or transformers save it"
        )
    name = parts.identify(folder)
    found = {name: folder}
    if name in _TOKENIZERS and (folder / "tokenizer_config.json").is_file():
        found[_TOKENIZERS[name]] = folder
    return Source(folder, found)


def find_all(folders: Sequence[Path]) -> Source:
    """Several folders as one; the first that says how its parts work together is the one that counts.

    A transformer's own folder takes the place of a pipeline's transformer. Beside folders one `.safetensors` file may
    stand: the tensors of another one of the same shape.

    Raises:
        InputError: two of them hold the same part, or a file has no folder to belong to.
    """
    files = [folder for folder in folders if folder.is_file()]
    sources = [find(folder) for folder in folders if folder not in files]
    found: dict[str, Path] = {}
    alone = any(source.run is None and "dit" in source.parts for source in sources)
    for source in sources:
        for name, where in source.parts.items():
            if name == "dit" and alone and is_pipeline(source.folder):
                continue
            if name in found and found[name] != where:
                raise InputError(f"there is a {name} both in {found[name]} and in {where}; name one of them")
            found[name] = where
    run = next((source.run for source in sources if source.run), None)
    for file in files:
        _check_file(file)
    if files and (len(files) > 1 or "dit" not in found):
        raise InputError(
            f"{files[-1]} is a file of tensors alone: name one such file, and beside it the folder of a pipeline whose "
            "transformer it replaces"
        )
    return Source(folders[0], found, run, dict.fromkeys(["dit"], files[0]) if files else {})


def _check_file(file: Path) -> None:
    if file.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise InputError(
            f"{file} is a pickle, which can run any code and is never opened here: take a .safetensors version of it, "
            "or make one where nothing is at risk, with safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), NEW)"
        )
    if file.suffix != ".safetensors":
        raise InputError(f"{file} is neither a folder nor a .safetensors file")
    if re.search(r"(high|low)_noise", file.name.lower()):
        raise InputError(f"{file} is called as one of the two transformers of a Wan2.2, which are not read yet")
    if re.search(r"-\d{5}-of-\d{5}\.", file.name):
        raise InputError(f"{file} is called as one of several files of a network: it takes one that holds all tensors")


def copy_companions(source: Path, target: Path) -> None:
    """Copy a part's small files that are neither its config nor its weights.

    Raises:
        InputError: one is a symbolic link that leads out of the folder: what it leads to is nothing to be handed on.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in {file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()}:
        copy(source, file.name, target)


def copy(source: Path, name: str, target: Path) -> None:
    """Copy a file of one folder to another; raises as `copy_companions` does."""
    shutil.copyfile(within(source, source / name), target / name)
