"""CogVideoX transformers as diffusers publishes them (`transformer/config.json` and its shards)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cinema_jax.errors import unsupported
from cinema_jax.inputs.typed import network
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.weights.rules import CONV2D, Rule, linear, norm

_BLOCK = "transformer_blocks.{layer}"

TABLE: tuple[Rule, ...] = (
    Rule("patch_embed.proj.weight", "patch_embed/kernel", CONV2D),
    Rule("patch_embed.proj.bias", "patch_embed/bias"),
    *linear("patch_embed.text_proj", "text_embed"),
    *linear("time_embedding.linear_1", "time_embed/linear_1"),
    *linear("time_embedding.linear_2", "time_embed/linear_2"),
    *linear(f"{_BLOCK}.norm1.linear", "blocks/norm1/linear"),
    *norm(f"{_BLOCK}.norm1.norm", "blocks/norm1/norm"),
    *linear(f"{_BLOCK}.attn1.to_q", "blocks/to_q"),
    *linear(f"{_BLOCK}.attn1.to_k", "blocks/to_k"),
    *linear(f"{_BLOCK}.attn1.to_v", "blocks/to_v"),
    *norm(f"{_BLOCK}.attn1.norm_q", "blocks/norm_q"),
    *norm(f"{_BLOCK}.attn1.norm_k", "blocks/norm_k"),
    *linear(f"{_BLOCK}.attn1.to_out.0", "blocks/to_out"),
    *linear(f"{_BLOCK}.norm2.linear", "blocks/norm2/linear"),
    *norm(f"{_BLOCK}.norm2.norm", "blocks/norm2/norm"),
    *linear(f"{_BLOCK}.ff.net.0.proj", "blocks/up"),
    *linear(f"{_BLOCK}.ff.net.2", "blocks/down"),
    *norm("norm_final", "norm_final"),
    *linear("norm_out.linear", "norm_out/linear"),
    *norm("norm_out.norm", "norm_out/norm"),
    *linear("proj_out", "proj_out"),
)

# Fields that the two configs share, by name.
_SHARED = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_embed_dim",
    "time_embed_dim",
    "patch_size",
    "max_text_seq_length",
    "use_rotary_positional_embeddings",
    "sample_height",
    "sample_width",
    "sample_frames",
    "temporal_compression_ratio",
    "spatial_interpolation_scale",
    "temporal_interpolation_scale",
    "norm_eps",
)

# What this network is, in diffusers' words: options that exist there and not here.
_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "ofs_embed_dim": None,
    "patch_bias": True,
    "patch_size_t": None,
    "timestep_activation_fn": "silu",
    "use_learned_positional_embeddings": False,
}


def config_from_hf(config: Mapping[str, Any]) -> CogVideoXConfig:
    """The config for a `transformer/config.json` of diffusers; its unsaid fields take diffusers' defaults, as ours do.

    Raises:
        ValueError: naming the fields that describe another network.
    """
    if config.get("_class_name", "CogVideoXTransformer3DModel") != "CogVideoXTransformer3DModel":
        raise ValueError(f"_class_name is {config['_class_name']!r}; it must be CogVideoXTransformer3DModel")
    said = {name: value for name, value in config.items() if not name.startswith("_")}
    problems = unsupported(said, _FIXED, _SHARED)
    if problems:
        raise ValueError("this CogVideoX config is not supported: " + ", ".join(problems))
    fields = {name: said[name] for name in _SHARED if name in said}
    # Diffusers lets it be null, for as many as come in.
    if fields.get("out_channels", 0) is None:
        fields["out_channels"] = fields.get("in_channels", CogVideoXConfig.in_channels)
    return network(fields, CogVideoXConfig)


def config_to_hf(config: CogVideoXConfig) -> dict[str, Any]:
    """The `transformer/config.json` with which diffusers builds the same network.

    Raises:
        ValueError: if diffusers has no such network.
    """
    if config.rope_theta != CogVideoXConfig.rope_theta:
        raise ValueError(f"rope_theta is {config.rope_theta}; diffusers always has {CogVideoXConfig.rope_theta}")
    fields = dataclasses.asdict(config)
    return {"_class_name": "CogVideoXTransformer3DModel", **{name: fields[name] for name in _SHARED}, **_FIXED}
