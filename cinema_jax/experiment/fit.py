"""Whether the parts of a model fit each other."""

from collections.abc import Callable, Mapping
from typing import Any

from cinema_jax.config import Config
from cinema_jax.models.wan.transformer_config import WanConfig

# (part, its size) pairs that must be equal, and what they are.
_FITS = (
    (("t5", "d_model"), ("dit", "text_embed_dim"), "width of text"),
    (("aligner", "output_dim"), ("dit", "text_embed_dim"), "width of text"),
    (("mllm", "hidden_size"), ("aligner", "input_dim"), "width of the MLLM's states"),
    (("aligner", "num_latents"), ("dit", "max_text_seq_length"), "text tokens"),
    (("vae", "z_dim"), ("dit", "in_channels"), "latent channels"),
)
# The same of transformers that read pictures beside the noise.
_PICTURED_FITS = (
    *_FITS[:-1],
    (("vae", "z_dim"), ("dit", "out_channels"), "latent channels"),
    (("clip", "hidden_size"), ("dit", "image_embed_dim"), "width of CLIP's tokens"),
    (("mllm", "hidden_size"), ("dit", "mllm_embed_dim"), "width of the MLLM's states"),
)

# What is wrong with one that is given none.
I2V_ALONE = (
    "is of Wan's I2V kind, which goes on from a first picture and knows no references of subjects: take Phantom's or "
    "RefAlign's, or BindWeave's as convert import makes a checkpoint of it"
)


def reads_pictures(dit: Any) -> bool:
    """Whether a transformer, by its config, is of Wan's I2V kind, and reads pictures beside the noise."""
    return isinstance(dit, WanConfig) and dit.image_embed_dim > 0


def reads_states(dit: Any) -> bool:
    """Whether a transformer, by its config, reads an MLLM's states itself, as BindWeave's does."""
    return isinstance(dit, WanConfig) and dit.mllm_embed_dim > 0


def takes_text(dit: Any, tokens: int) -> bool:
    """Whether a transformer, by its config, reads a text block of so many tokens."""
    most = dit.max_text_seq_length
    return tokens == most or (dit.text_length == "filled" and tokens < most)


def fits(configs: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """For each pair of parts that touch, whether their sizes agree, and a sentence about it."""
    found = []
    for (one, field), (other, wanted), what in _PICTURED_FITS if reads_pictures(configs.get("dit")) else _FITS:
        # Of what a transformer does not read, any is right.
        if one in configs and other in configs and getattr(configs[other], wanted):
            a, b = getattr(configs[one], field), getattr(configs[other], wanted)
            right = takes_text(configs[other], a) if wanted == "max_text_seq_length" else a == b
            relation = "fits" if right else "does not fit"
            found.append((right, f"{one} {relation} {other}: {what} {a}" + ("" if a == b else f" there and {b} here")))
    return found


def outer_sizes(part: str, part_config: Callable[[str], Any], config: Config) -> dict[str, int]:
    """Those sizes of a part that follow from the parts it is joined to."""
    tokens = config.condition.text_tokens
    if part == "aligner":
        outputs = part_config("t5").d_model
        return {"input_dim": part_config("mllm").hidden_size, "output_dim": outputs, "num_latents": tokens}
    if part == "dit":
        channels, text = part_config("vae").z_dim, part_config("t5").d_model
        own = {"in_channels": channels, "out_channels": channels, "text_embed_dim": text}
        filled = config.dit_model.text_length == "filled" and "pretrain" not in config.stages
        return own if filled else own | {"max_text_seq_length": tokens}
    return {}
