"""Names and layouts of CogVideoX VAEs as diffusers publishes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cinema_jax.errors import unsupported
from cinema_jax.inputs.typed import network
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.weights.rules import CONV2D, CONV3D, POINTWISE3D, Rule, conv, norm


def _norm(name: str, path: str, latents: bool) -> tuple[Rule, ...]:
    if not latents:
        return norm(name, path)
    pointwise = (r for x in ("conv_y", "conv_b") for r in conv(f"{name}.{x}.conv", f"{path}/{x}", POINTWISE3D))
    return (*norm(f"{name}.norm_layer", f"{path}/norm_layer"), *pointwise)


def _residual(name: str, latents: bool) -> tuple[Rule, ...]:
    path = name.replace(".", "/")
    return (
        *_norm(f"{name}.norm1", f"{path}/norm1", latents),
        *_norm(f"{name}.norm2", f"{path}/norm2", latents),
        *conv(f"{name}.conv1.conv", f"{path}/conv1", CONV3D),
        *conv(f"{name}.conv2.conv", f"{path}/conv2", CONV3D),
        *conv(f"{name}.conv_shortcut", f"{path}/conv_shortcut", POINTWISE3D),
    )


def _half(part: str, blocks: str, step: str, latents: bool) -> tuple[Rule, ...]:
    """Encoder or decoder."""
    return (
        *conv(f"{part}.conv_in.conv", f"{part}/conv_in", CONV3D),
        *_residual(f"{part}.mid_block.resnets.{{j}}", latents),
        *_residual(f"{part}.{blocks}.{{i}}.resnets.{{j}}", latents),
        *conv(f"{part}.{blocks}.{{i}}.{step}s.0.conv", f"{part}/{blocks}/{{i}}/{step}", CONV2D),
        *_norm(f"{part}.norm_out", f"{part}/norm_out", latents),
        *conv(f"{part}.conv_out.conv", f"{part}/conv_out", CONV3D),
    )


TABLE: tuple[Rule, ...] = (
    *_half("encoder", "down_blocks", "downsampler", False),
    *_half("decoder", "up_blocks", "upsampler", True),
)

# What only other VAEs set otherwise.
_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "invert_scale_latents": False,
    "latents_mean": None,
    "latents_std": None,
    "out_channels": 3,
    "shift_factor": None,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
# It says how precisely diffusers should compute.
_IGNORED = ("force_upcast",)
_TYPES = {"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"}


def config_from_hf(config: Mapping[str, Any]) -> CogVideoXVAEConfig:
    """The config for a `vae/config.json` of diffusers; fields it does not say take diffusers' defaults, as ours do.

    Raises:
        ValueError: naming the fields that describe another network.
    """
    if config.get("_class_name", "AutoencoderKLCogVideoX") != "AutoencoderKLCogVideoX":
        raise ValueError(f"_class_name is {config['_class_name']!r}; it must be AutoencoderKLCogVideoX")
    said = {name: value for name, value in config.items() if not name.startswith("_") and name not in _IGNORED}
    fields = tuple(field.name for field in dataclasses.fields(CogVideoXVAEConfig))
    problems = unsupported(said, _FIXED, (*fields, *_TYPES))
    problems += [
        f"{name} holds {other!r}; only {v!r} is supported"
        for name, v in _TYPES.items()
        for other in sorted(set(said.get(name, ())) - {v})
    ]
    if problems:
        raise ValueError("this VAE config is not supported: " + ", ".join(problems))
    return network({name: said[name] for name in fields if name in said}, CogVideoXVAEConfig)


def config_to_hf(config: CogVideoXVAEConfig) -> dict[str, Any]:
    """The `vae/config.json` with which diffusers builds the same network."""
    stages = len(config.block_out_channels)
    fields = dataclasses.asdict(config) | {"block_out_channels": list(config.block_out_channels)}
    types = {name: [kind] * stages for name, kind in _TYPES.items()}
    return {"_class_name": "AutoencoderKLCogVideoX", **fields, **types, **_FIXED}
