"""How released weights that look like plain text-to-video ones want their references: as changes of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cinema_jax.config import Config, parse, to_dict
from cinema_jax.errors import InputError
from cinema_jax.models.wan.transformer_config import WanConfig

# Phantom (arXiv 2502.11079), and RefAlign, which is used alike: at most four references as large as the video behind
# it; guidance against zeros in their place; and both scales of its three branches.
PHANTOM: Mapping[str, Mapping[str, Any]] = {
    "condition": {"entities": True, "empty_references": "zeros"},
    "data": {"references_like_video": True, "crop_references": False, "max_references": 4},
    "flow": {"shift": 5.0, "guidance_reference": 5.0, "guidance_text": 7.5},
}
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"none": {}, "phantom": PHANTOM}
# Nothing in the weights themselves tells them from others: what files are called by those who publish them.
_NAMES = {"phantom": "phantom", "refalign": "phantom"}


def preset_of(file: Path) -> str:
    """The preset that a file's name speaks of."""
    return next((preset for word, preset in _NAMES.items() if word in file.name.lower()), "none")


def with_preset(config: Config, dit: Any, name: str) -> Config:
    """The config of a checkpoint whose transformer reads references as the preset says.

    Args:
        dit: the transformer's config.

    Raises:
        InputError: the preset is for another kind of transformer.
    """
    if name != "none" and not isinstance(dit, WanConfig):
        raise InputError(f"--preset={name} is for Wan's transformer; without it these weights keep their own config")
    values = to_dict(config)
    return parse(values | {section: values[section] | changes for section, changes in PRESETS[name].items()})
