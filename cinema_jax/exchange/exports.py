"""A checkpoint as a folder that diffusers and transformers load: their layout, their names, sharded safetensors."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cinema_jax.config import to_dict
from cinema_jax.errors import InputError
from cinema_jax.exchange.card import model_card
from cinema_jax.exchange.folders import check_new, new_folder
from cinema_jax.exchange.sources import copy_companions
from cinema_jax.experiment import parts
from cinema_jax.experiment.pipelines import CINEMA, FOLDERS, FORMAT, INDEX, OWN_PIPELINE, is_pipeline, without_sources
from cinema_jax.experiment.released import RELEASED, scheduler_of
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import Standing, Weights, stands_for
from cinema_jax.models.clip.weights import CLASS
from cinema_jax.models.t5.weights import CLASSES
from cinema_jax.weights import shards
from cinema_jax.weights.quantised import SCALE, Kind, scaled_names
from cinema_jax.weights.rules import Published, publish

logger = logging.getLogger(__name__)

# The file of `export_original`.
ORIGINAL = "diffusion_model.safetensors"


@dataclasses.dataclass(frozen=True)
class _Part:
    """One part on its way out."""

    folder: Path
    # Its config.json.
    values: dict[str, Any]
    tensors: dict[str, Published]
    # File names and the tensors in each.
    files: dict[str, list[str]]


def export_checkpoint(
    run: Run,
    output: Path,
    *,
    weights: Weights = "ema",
    tell: Callable[[Standing], Any] = lambda standing: None,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    names: tuple[str, ...] | None = None,
    codes: Kind | None = None,
) -> None:
    """Write a run, an import or a pipeline in the layout of diffusers.

    Every process reads what it writes, file by file and tensor by tensor, from where the checkpoint lies, and the
    folder gets its name when all files are complete.

    Args:
        run: the checkpoint.
        output: the new folder.
        weights: the averaged weights of what was trained, or its last values.
        tell: is told which weights these are, before they are read.
        dtype: of all tensors; as each is in the checkpoint if None.
        max_shard_size: of one file, in bytes or as a text such as "5GB".
        names: which parts; all of the checkpoint if None.
        codes: what the large kernels of transformer, T5 and multimodal LLM become, with a scale for each output channel
            beside them; diffusers and transformers do not read such parts.

    Raises:
        InputError: there is nothing to export, `output` is there already, or a value does not fit `dtype`.
    """
    check_new(output)
    shards.plan("model", {"x": np.zeros(1)}, max_shard_size)
    standing = stands_for(run, weights)
    tell(standing)
    there = [name for name in parts.KINDS if standing.has(name)]
    if unknown := set(names or ()) - set(there):
        held = ", ".join(there) or "no part"
        raise InputError(f"{run.workdir} holds no {', '.join(sorted(unknown))}; it holds {held}")
    there = [name for name in there if names is None or name in names]
    if not there:
        raise InputError(f"{run.workdir} holds no trained part yet; let a stage of it reach its first checkpoint")
    prepared = {name: _prepare(standing, name, dtype, max_shard_size, codes) for name in there}
    with new_folder(output) as partial:
        for part in prepared.values():
            (partial / part.folder).mkdir(exist_ok=True)
        files = [(part, file) for part in prepared.values() for file in part.files]
        for part, file in files[jax.process_index() :: jax.process_count()]:
            tensors = {name: part.tensors[name] for name in part.files[file]}
            shards.write_tensors(partial / part.folder / file, tensors)
            logger.info("%s", part.folder / file)
        if jax.process_index() == 0:
            _write_texts(standing, partial, prepared, codes)
        standing.check_there()


def export_original(
    run: Run,
    output: Path,
    *,
    weights: Weights = "ema",
    tell: Callable[[Standing], Any] = lambda standing: None,
    dtype: Any = None,
) -> Path:
    """Write the transformer to one file under the names of the project that first published such networks.

    Args:
        run: as for `export_checkpoint`.
        output: the new folder.
        weights: as for `export_checkpoint`.
        tell: as for `export_checkpoint`.
        dtype: as for `export_checkpoint`.

    Returns:
        The file.

    Raises:
        InputError: as `export_checkpoint`; or such transformers have no other names than diffusers'.
    """
    standing = stands_for(run, weights)
    tell(standing)
    config = run.part_config("dit")
    if (table := parts.kind_of("dit", config).original) is None:
        raise InputError(f"{run.workdir} holds a {parts.kind_of('dit', config).names[0]}, which has no original layout")
    arrays = {path.removeprefix("dit/"): x for path, x in standing.arrays("dit").items()}
    tensors = publish(arrays, table(config))
    if dtype is not None:
        tensors = {key: tensor.astype(dtype) for key, tensor in tensors.items()}
    with new_folder(output) as partial:
        if jax.process_index() == 0:
            shards.write_tensors(partial / ORIGINAL, tensors)
        else:
            shards.read_along(tensors)
        standing.check_there()
    return output / ORIGINAL


def _prepare(standing: Standing, name: str, dtype: Any, max_shard_size: int | str, codes: Kind | None) -> _Part:
    run = standing.run
    config, folder = run.part_config(name), run.folder(name)
    arrays = parts.with_codes(name, standing.arrays(name), codes)
    kind = parts.kind_of(name, config)
    tensors = parts.published(name, config, arrays)
    made = {key for each in scaled_names(tensors) for key in (each, each + SCALE)}
    if dtype is not None:
        tensors = {key: tensor if key in made else tensor.astype(dtype) for key, tensor in tensors.items()}
    values = parts.plain(parts.read_json(folder / "config.json")) if folder else kind.config_to_hf(config)
    if made:
        values[parts.QUANTISATION] = parts.quantisation(codes)
    kinds = {str(tensor.dtype) for key, tensor in tensors.items() if key not in made}
    for field in ("dtype", "torch_dtype"):
        # Transformers loads in the type that is said here.
        if field in values and len(kinds) == 1:
            values[field] = next(iter(kinds))
    logger.info("%s: %s", name, shards.describe(tensors))
    return _Part(Path(FOLDERS[name]), values, tensors, shards.plan(kind.stem, tensors, max_shard_size))


def _write_texts(standing: Standing, output: Path, prepared: Mapping[str, _Part], codes: Kind | None) -> None:
    run = standing.run
    for name, part in prepared.items():
        parts.write_json(output / part.folder / "config.json", part.values)
        if len(part.files) > 1:
            stem = parts.kind_of(name, run.part_config(name)).stem
            parts.write_json(
                output / part.folder / f"{stem}.safetensors.index.json", shards.index(part.files, part.tensors)
            )
        if folder := run.folder(name):
            copy_companions(folder, output / part.folder)
    # The tokenizer of each part that reads text.
    for name, reader in (("tokenizer", "mllm"), ("t5_tokenizer", "t5")):
        if reader in prepared and (folder := run.folder(name)):
            copy_companions(folder, output / FOLDERS[name])
        elif reader in prepared:
            run.tokenizer(name).save_pretrained(output / FOLDERS[name])
    (output / "scheduler").mkdir()
    scheduler = _scheduler(run)
    parts.write_json(output / "scheduler" / "scheduler_config.json", scheduler)
    index = _model_index(run, prepared, scheduler, output / FOLDERS["t5_tokenizer"])
    parts.write_json(output / CINEMA, {"format": FORMAT, "config": without_sources(to_dict(run.config))})
    (output / "README.md").write_text(model_card(standing, prepared.keys(), index["_class_name"], codes))
    # Last: without it nobody takes the folder for a pipeline.
    parts.write_json(output / INDEX, index)


def _scheduler(run: Run) -> dict[str, Any]:
    if is_pipeline(run.workdir):
        return parts.read_json(run.workdir / "scheduler" / "scheduler_config.json")
    return scheduler_of(run.config)


def _model_index(
    run: Run, prepared: Mapping[str, _Part], scheduler: Mapping[str, Any], tokenizer: Path
) -> dict[str, Any]:
    """What diffusers reads first. Its pipelines need their own VAE, text encoder and scheduler."""
    configs = {name: run.part_config(name) for name in prepared}
    pipeline = next((one.name for one in RELEASED if one.takes(configs, scheduler["_class_name"])), OWN_PIPELINE)
    index = {"_class_name": pipeline, "_diffusers_version": "0.30.0"}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    if "t5" in prepared:
        # T5's own has a model of SentencePiece; that of a small run is a list of words, which T5Tokenizer cannot open.
        pieces = (tokenizer / "spiece.model").is_file() or _is_t5(tokenizer)
        kind = "T5Tokenizer" if pieces else "PreTrainedTokenizerFast"
        encoder = CLASSES[configs["t5"].model_type]
        index |= {"text_encoder": ["transformers", encoder], "tokenizer": ["transformers", kind]}
    for name in ("dit", "vae"):
        if name in prepared:
            index[FOLDERS[name]] = ["diffusers", prepared[name].values["_class_name"]]
    if "clip" in prepared:
        index[FOLDERS["clip"]] = ["transformers", CLASS]
    return index


def _is_t5(tokenizer: Path) -> bool:
    """Whether a saved tokenizer says that it is T5's, or its fast one."""
    said = parts.read_json(tokenizer / "tokenizer_config.json").get("tokenizer_class") or ""
    return said.removesuffix("Fast") == "T5Tokenizer"
