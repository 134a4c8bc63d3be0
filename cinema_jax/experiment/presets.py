"""How released weights want their references: as changes of a config.

A preset is data. Where references stand, what they lie on, what is left where they are absent, what their channels and
the prompt's readers are, and the chain of guidance are fields of the config that a checkpoint carries.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cinema_jax.config import Config, parse, to_dict
from cinema_jax.errors import InputError
from cinema_jax.experiment.fit import reads_pictures, reads_states
from cinema_jax.models.wan.transformer_config import WanConfig

# Phantom (arXiv 2502.11079), and RefAlign, which is used alike: at most four references as large as the video behind
# it; guidance against zeros in their place; and both scales of its three branches.
PHANTOM: Mapping[str, Mapping[str, Any]] = {
    "condition": {"entities": True, "empty_references": "zeros"},
    "data": {"references_like_video": True, "crop_references": False, "max_references": 4},
    "flow": {"shift": 5.0, "guidance_reference": 5.0, "guidance_text": 7.5},
}
# BindWeave (arXiv 2510.00438): four slots before the video, on black and never enlarged, those without a picture zero;
# a mask and latents beside the noise, and CLIP's tokens; the prompt read by Qwen2.5-VL, with the pictures after it, and
# by UMT5. Guidance is against the negative prompt with the same references: no branch is without them.
BINDWEAVE: Mapping[str, Mapping[str, Any]] = {
    "condition": {
        "conditioner": "both",
        "entities": True,
        "empty_references": "slots",
        "reference_channels": "masked",
        "template": "bindweave",
        "text_tokens": WanConfig.max_text_seq_length,
        "clean_text": True,
        "mllm_layer": -1,
        "mllm_scales": (0.75, 0.3),
        # All that 0.75 of 1280 x 720 pixels need. The largest photographs lose more than with the original, which has
        # no bound: 0.3 of more than 2600 x 2600 pixels.
        "mllm_max_pixels": 768 * 28 * 28,
        "mllm_min_pixels": 4 * 28 * 28,
        "mllm_patches": 4 * 4 * 768,
        "mllm_tokens": 4 * 768 + 1024,
    },
    "data": {
        "references_like_video": True,
        "enlarge_references": False,
        "background": "black",
        "crop_references": False,
        "max_references": 4,
        "frames": 81,
        "height": 720,
        "width": 1280,
        "fps": 16.0,
    },
    "flow": {
        "prediction": "velocity",
        "solver": "unipc",
        "spacing": "timesteps",
        "sample_steps": 50,
        "shift": 3.0,
        "guidance_reference": 1.0,
        "guidance_text": 5.0,
    },
    "dit_model": {"reference_times": "before"},
}
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"none": {}, "phantom": PHANTOM, "bindweave": BINDWEAVE}
# Nothing in these weights themselves tells them from others: what files are called by those who publish them.
_NAMES = {"phantom": "phantom", "refalign": "phantom"}
# The other parts that BindWeave's transformer needs.
_NEEDED = {"vae": "Wan's VAE", "t5": "UMT5", "clip": "CLIP's image_encoder", "mllm": "Qwen2.5-VL"}


def preset_of(dit: Any, file: Path | None) -> str:
    """The preset of a transformer: by its config, or that which its file's name speaks of."""
    if reads_states(dit):
        return "bindweave"
    name = "" if file is None else file.name.lower()
    return next((preset for word, preset in _NAMES.items() if word in name), "none")


def with_preset(config: Config, dit: Any, name: str, parts: Iterable[str]) -> Config:
    """The config of a checkpoint whose transformer reads references as the preset says.

    Args:
        dit: the transformer's config.
        parts: those that the checkpoint has.

    Raises:
        InputError: the preset is for another kind of transformer, or a part is missing that it reads.
    """
    if name != "none" and not isinstance(dit, WanConfig):
        raise InputError(f"--preset={name} is for Wan's transformer; without it these weights keep their own config")
    if (name == "bindweave") != reads_states(dit):
        which = "has no text_projector" if name == "bindweave" else "has a text_projector, which no other reads"
        raise InputError(f"--preset={name} does not go with this transformer, which {which}: leave --preset out")
    if name == "phantom" and reads_pictures(dit):
        raise InputError(f"--preset={name} is for T2V transformers; this one is of the I2V kind: leave --preset out")
    missing = [what for part, what in _NEEDED.items() if part not in parts]
    if name == "bindweave" and missing:
        raise InputError(f"BindWeave's transformer needs {', '.join(missing)} too: name the folder as --source")
    values = to_dict(config)
    if "dit_model" in PRESETS[name]:
        # Of another kind of network the config's own section may be.
        values |= {"dit_model": to_dict(WanConfig())}
    return parse(values | {section: values[section] | changes for section, changes in PRESETS[name].items()})
