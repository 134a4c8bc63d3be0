"""The sizes that cinema_jax and diffusers are both measured at."""

import dataclasses

from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.wan.transformer_config import WanConfig

TransformerConfig = CogVideoXConfig | WanConfig
# CogVideoX-5b differs from 2b in these.
LARGE = {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True}
TINY = {"num_layers": 3, "num_attention_heads": 2, "text_embed_dim": 32, "max_text_seq_length": 15}


def transformer_config(name: str, layers: int, tiny: bool) -> TransformerConfig:
    """That of 2b, 5b or wan (1.3B), with so many layers; 0: all."""
    config = {"2b": CogVideoXConfig(), "5b": CogVideoXConfig(**LARGE), "wan": WanConfig()}[name.split("_")[0]]
    if tiny:
        config = dataclasses.replace(config, **TINY)
    return dataclasses.replace(config, remat="full", num_layers=layers or config.num_layers)


def vae_config(tiny: bool) -> CogVideoXVAEConfig:
    """CogVideoX'."""
    small = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_height": 96}
    return CogVideoXVAEConfig(**small, sample_width=96) if tiny else CogVideoXVAEConfig()


def latents(tiny: bool) -> tuple[int, ...]:
    """Of 49 frames of 480 x 720."""
    return (1, 3, 8, 8, 16) if tiny else (1, 13, 60, 90, 16)


def named(part: str, config: TransformerConfig, what: str) -> str:
    """The item of a result, the same for both libraries."""
    return f"{part.split('_')[0]}, {config.num_layers} layers, {what}"
