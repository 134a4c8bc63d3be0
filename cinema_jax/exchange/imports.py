"""Published weights as one checkpoint: checked, gathered from several folders, and written by Orbax."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from cinema_jax.config import default, parse, to_dict
from cinema_jax.devices import sharding
from cinema_jax.devices.distributed import together
from cinema_jax.errors import InputError
from cinema_jax.exchange.folders import new_folder
from cinema_jax.exchange.sources import copy, copy_companions, find, find_all
from cinema_jax.experiment import parts
from cinema_jax.experiment.fit import fits
from cinema_jax.experiment.pipelines import without_sources
from cinema_jax.experiment.presets import preset_of, with_preset
from cinema_jax.experiment.standing import refuse_unfinished
from cinema_jax.weights import shards

logger = logging.getLogger(__name__)


def import_checkpoint(folders: Sequence[Path], output: Path, preset: str | None = None) -> str:
    """Write the parts in `folders` to a checkpoint that `config.init` and `generate` take.

    It has the layout of a run: `config.json` says how the parts work together (as the first folder that knows does),
    and `parts/<part>/` holds the published config and the weights in their own precision. Every process reads and
    writes the slices of its own devices, one part after the other; the folder gets its name when it is complete.

    Args:
        folders: where the parts are; a file may take the place of a transformer (see `find_all`).
        output: the new folder.
        preset: how the transformer reads references (see `presets.py`); by the file's name if None.

    Returns:
        The preset.

    Raises:
        InputError: the folders hold a part twice or parts that do not fit, `output` is there already, or a file is
            damaged.
    """
    for folder in folders:
        if not folder.is_file() and (run := find(folder).run):
            refuse_unfinished(run, f"--source={folder}")
    source = find_all(folders)
    found = {name: folder for name, folder in source.parts.items() if name in parts.KINDS}
    configs = {name: parts.completed_config(name, where, source.files.get(name)) for name, where in found.items()}
    if wrong := [sentence for right, sentence in fits(configs) if not right]:
        raise InputError("; ".join(wrong))
    # Opened before anything is written: what is wrong with any of them is said now.
    weights = {name: parts.read(name, configs[name], source.files.get(name, folder)) for name, folder in found.items()}
    config = source.run.config if source.run else parse(default())
    if preset is None:
        preset = preset_of(configs.get("dit"), source.files.get("dit"))
    config = with_preset(config, configs.get("dit"), preset, found)
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    with new_folder(output) as partial:
        for name, arrays in weights.items():
            folder = partial / "parts" / name
            if jax.process_index() == 0:
                copy_companions(found[name], folder)
                copy(found[name], "config.json", folder)
                if configs[name] != parts.read_config(name, folder):
                    # What it does not say, and the tensors do.
                    said, whole = folder / "config.json", parts.kind_of(name, configs[name]).config_to_hf(configs[name])
                    parts.write_json(said, whole | parts.read_json(said))
            together(f"import {name}")
            placed = sharding.place(arrays, mesh)
            ocp.save_checkpointables(folder / parts.STORED.parent, {parts.STORED.name: placed})
            logger.info("%s: %s", name, shards.describe(arrays))
        if jax.process_index() == 0:
            for name in parts.TOKENIZERS:
                # One beside its part has been copied with it.
                if name in source.parts and source.parts[name] not in found.values():
                    copy_companions(source.parts[name], partial / "parts" / name)
            parts.write_json(partial / "config.json", without_sources(to_dict(config)))
    return preset
