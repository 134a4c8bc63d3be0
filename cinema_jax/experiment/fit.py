"""Whether the parts of a model fit each other."""

from collections.abc import Mapping
from typing import Any

# (part, its size) pairs that must be equal, and what they are.
_FITS = (
    (("t5", "d_model"), ("dit", "text_embed_dim"), "width of text"),
    (("aligner", "output_dim"), ("dit", "text_embed_dim"), "width of text"),
    (("mllm", "hidden_size"), ("aligner", "input_dim"), "width of the MLLM's states"),
    (("aligner", "num_latents"), ("dit", "max_text_seq_length"), "text tokens"),
    (("vae", "z_dim"), ("dit", "in_channels"), "latent channels"),
)


def takes_text(dit: Any, tokens: int) -> bool:
    """Whether a transformer, by its config, reads a text block of so many tokens."""
    most = dit.max_text_seq_length
    return tokens == most or (dit.text_length == "filled" and tokens < most)


def fits(configs: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """For each pair of parts that touch, whether their sizes agree, and a sentence about it."""
    found = []
    for (one, field), (other, wanted), what in _FITS:
        if one in configs and other in configs:
            a, b = getattr(configs[one], field), getattr(configs[other], wanted)
            right = takes_text(configs[other], a) if wanted == "max_text_seq_length" else a == b
            relation = "fits" if right else "does not fit"
            found.append((right, f"{one} {relation} {other}: {what} {a}" + ("" if a == b else f" there and {b} here")))
    return found
