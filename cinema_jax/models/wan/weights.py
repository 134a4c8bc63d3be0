"""Names and layouts of Wan checkpoints as diffusers publishes them."""

from collections.abc import Mapping
from typing import Any

from cinema_jax.errors import unsupported
from cinema_jax.inputs.typed import network
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.weights.rules import CONV2D, CONV3D, POINTWISE3D, Rule, Transform, conv

_POINTWISE2D = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
_TIME = Transform(lambda x: x[..., 0, 0].transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)[..., None, None])
_GAMMA2D = Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None])
_GAMMA3D = Transform(lambda x: x[:, 0, 0, 0], lambda x: x[:, None, None, None])


def _residual(name: str) -> tuple[Rule, ...]:
    path = name.replace(".", "/")
    return (
        Rule(f"{name}.norm1.gamma", f"{path}/norm1/scale", _GAMMA3D),
        *conv(f"{name}.conv1", f"{path}/conv1", CONV3D),
        Rule(f"{name}.norm2.gamma", f"{path}/norm2/scale", _GAMMA3D),
        *conv(f"{name}.conv2", f"{path}/conv2", CONV3D),
        *conv(f"{name}.conv_shortcut", f"{path}/conv_shortcut", POINTWISE3D),
    )


def _attention(name: str) -> tuple[Rule, ...]:
    path = name.replace(".", "/")
    return (
        Rule(f"{name}.norm.gamma", f"{path}/norm/scale", _GAMMA2D),
        *conv(f"{name}.to_qkv", f"{path}/to_qkv", _POINTWISE2D),
        *conv(f"{name}.proj", f"{path}/proj", _POINTWISE2D),
    )


def _resample(name: str, path: str) -> tuple[Rule, ...]:
    return (
        *conv(f"{name}.resample.1", f"{path}/resample", CONV2D),
        *conv(f"{name}.time_conv", f"{path}/time_conv", _TIME),
    )


def _both(part: str) -> tuple[Rule, ...]:
    """What encoder and decoder have alike."""
    return (
        *conv(f"{part}.conv_in", f"{part}/conv_in", CONV3D),
        *_residual(f"{part}.mid_block.resnets.{{i}}"),
        *_attention(f"{part}.mid_block.attentions.{{i}}"),
        Rule(f"{part}.norm_out.gamma", f"{part}/norm_out/scale", _GAMMA3D),
        *conv(f"{part}.conv_out", f"{part}/conv_out", CONV3D),
    )


TABLE: tuple[Rule, ...] = (
    *_both("encoder"),
    *_residual("encoder.down_blocks.{i}"),
    *_attention("encoder.down_blocks.{i}"),
    *_resample("encoder.down_blocks.{i}", "encoder/down_blocks/{i}"),
    *conv("quant_conv", "quant_conv", POINTWISE3D),
    *conv("post_quant_conv", "post_quant_conv", POINTWISE3D),
    *_both("decoder"),
    *_residual("decoder.up_blocks.{i}.resnets.{j}"),
    *_resample("decoder.up_blocks.{i}.upsamplers.0", "decoder/up_blocks/{i}/upsampler"),
)


# Published fields that are ours under the same name.
_SAME = ("base_dim", "decoder_base_dim", "z_dim", "num_res_blocks")
_TUPLES = ("dim_mult", "attn_scales", "latents_mean", "latents_std")
# What only other VAEs (Wan2.2's) set otherwise.
_FIXED = {"is_residual": False, "in_channels": 3, "out_channels": 3, "patch_size": None}
# Settings of training, an unused option, and what follows from other fields.
_IGNORED = ("dropout", "clip_output", "scale_factor_spatial", "scale_factor_temporal")


def config_from_hf(config: Mapping[str, Any]) -> WanVAEConfig:
    """The config for a `vae/config.json` of diffusers; fields it does not say take the released VAE's values.

    Raises:
        ValueError: naming the fields that describe another network.
    """
    if config.get("_class_name", "AutoencoderKLWan") != "AutoencoderKLWan":
        raise ValueError(f"_class_name is {config['_class_name']!r}; it must be AutoencoderKLWan")
    said = {name: value for name, value in config.items() if not name.startswith("_") and name not in _IGNORED}
    problems = unsupported(said, _FIXED, (*_SAME, *_TUPLES, "temperal_downsample"))
    if problems:
        raise ValueError("this VAE config is not supported: " + ", ".join(problems))
    fields = {name: said[name] for name in _SAME if name in said}
    fields |= {name: said[name] for name in _TUPLES if name in said}
    if "temperal_downsample" in said:
        fields["temporal_downsample"] = said["temperal_downsample"]
    return network(fields, WanVAEConfig)


def config_to_hf(config: WanVAEConfig) -> dict[str, Any]:
    """The `vae/config.json` with which diffusers builds the same network (its spelling of one field included)."""
    return {
        "_class_name": "AutoencoderKLWan",
        **{name: getattr(config, name) for name in _SAME},
        **{name: list(getattr(config, name)) for name in _TUPLES},
        "temperal_downsample": list(config.temporal_downsample),
        # Its pipeline and its tiles go by these.
        "scale_factor_temporal": config.temporal_compression,
        "scale_factor_spatial": config.spatial_compression,
    }
