"""Wan2.1 transformers as diffusers publishes them, and under the names of the original project.

Each rule's alias is the original name (`blocks.0.self_attn.q.weight`), with which most single files in circulation
come; arrays are alike. Either kind is read; `ORIGINAL` writes the second.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cinema_jax.errors import unsupported
from cinema_jax.inputs.typed import checked, network
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.weights.rules import Rule, Transform, linear, norm
from cinema_jax.weights.tensors import WeightError

# (out, in, 1, rows, columns) <-> (rows, columns, in, out)
_PATCH = Transform(lambda x: x[:, :, 0].transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)[:, :, None])
_FIRST_AXIS = Transform(lambda x: x[0], lambda x: x[None])
_BLOCK, _EMBED = "blocks.{layer}", "condition_embedder"


def _attention(theirs: str, original: str, ours: str) -> tuple[Rule, ...]:
    name, path, other = f"{_BLOCK}.{theirs}", f"blocks/{ours}", f"{_BLOCK}.{original}"
    return (
        *(rule for x in "qkv" for rule in linear(f"{name}.to_{x}", f"{path}/to_{x}", f"{other}.{x}")),
        *linear(f"{name}.to_out.0", f"{path}/to_out", f"{other}.o"),
        *(rule for x in "qk" for rule in norm(f"{name}.norm_{x}", f"{path}/norm_{x}", f"{other}.norm_{x}", bias=False)),
    )


_TEXT_TO_VIDEO: tuple[Rule, ...] = (
    Rule("patch_embedding.weight", "patch_embed/kernel", _PATCH, ("patch_embedding.weight",)),
    Rule("patch_embedding.bias", "patch_embed/bias", aliases=("patch_embedding.bias",)),
    *linear(f"{_EMBED}.text_embedder.linear_1", "text_embed/linear_1", "text_embedding.0"),
    *linear(f"{_EMBED}.text_embedder.linear_2", "text_embed/linear_2", "text_embedding.2"),
    *linear(f"{_EMBED}.time_embedder.linear_1", "time_embed/linear_1", "time_embedding.0"),
    *linear(f"{_EMBED}.time_embedder.linear_2", "time_embed/linear_2", "time_embedding.2"),
    *linear(f"{_EMBED}.time_proj", "time_modulation", "time_projection.1"),
    Rule(f"{_BLOCK}.scale_shift_table", "blocks/modulation", _FIRST_AXIS, (f"{_BLOCK}.modulation",)),
    *_attention("attn1", "self_attn", "self_attention"),
    *norm(f"{_BLOCK}.norm2", "blocks/cross_norm", f"{_BLOCK}.norm3"),
    *_attention("attn2", "cross_attn", "cross_attention"),
    *linear(f"{_BLOCK}.ffn.net.0.proj", "blocks/up", f"{_BLOCK}.ffn.0"),
    *linear(f"{_BLOCK}.ffn.net.2", "blocks/down", f"{_BLOCK}.ffn.2"),
    Rule("scale_shift_table", "modulation", _FIRST_AXIS, ("head.modulation",)),
    *linear("proj_out", "proj_out", "head.head"),
)
_IMAGES: tuple[Rule, ...] = (
    *norm(f"{_EMBED}.image_embedder.norm1", "image_embed/norm_1", "img_emb.proj.0"),
    *linear(f"{_EMBED}.image_embedder.ff.net.0.proj", "image_embed/linear_1", "img_emb.proj.1"),
    *linear(f"{_EMBED}.image_embedder.ff.net.2", "image_embed/linear_2", "img_emb.proj.3"),
    *norm(f"{_EMBED}.image_embedder.norm2", "image_embed/norm_2", "img_emb.proj.4"),
    *linear(f"{_BLOCK}.attn2.add_k_proj", "blocks/cross_attention/image_k", f"{_BLOCK}.cross_attn.k_img"),
    *linear(f"{_BLOCK}.attn2.add_v_proj", "blocks/cross_attention/image_v", f"{_BLOCK}.cross_attn.v_img"),
    *norm(
        f"{_BLOCK}.attn2.norm_added_k",
        "blocks/cross_attention/norm_image_k",
        f"{_BLOCK}.cross_attn.norm_k_img",
        bias=False,
    ),
)
# BindWeave's; the name of its own training code is the alias.
_STATES: tuple[Rule, ...] = tuple(
    rule
    for x in ("linear_1", "linear_2")
    for rule in linear(f"{_EMBED}.text_projector.{x}", f"text_projector/{x}", f"text_projector.{x}")
)


def table(config: WanConfig) -> tuple[Rule, ...]:
    """The rules of a network: I2V ones have more, and those that read an MLLM's states."""
    images, states = _IMAGES if config.image_embed_dim else (), _STATES if config.mllm_embed_dim else ()
    return _TEXT_TO_VIDEO + images + states


def original_table(config: WanConfig) -> tuple[Rule, ...]:
    """The same, to write the original names."""
    return tuple(dataclasses.replace(rule, name=rule.aliases[0], aliases=()) for rule in table(config))


# What single files have before their names.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
# Tensors of other networks with the same blocks, and what those are.
_OTHERS = {
    "vace_": "a VACE checkpoint, whose control branch this project does not have",
    "lora_": "a LoRA file: adapters for a transformer and no transformer",
    "scale_weight": "in 8 bits with scales beside them; 8 bits are read without scales alone",
    "weight_scale": "in 8 bits with scales beside them; 8 bits are read without scales alone",
    "audio_": "an audio-driven transformer, which this project does not have",
    "emb_pos": "a first-and-last-frame transformer, which this project does not have",
    "pos_embed": "a first-and-last-frame transformer, which this project does not have",
}
# In some published I2V files; nothing computes with it.
_UNUSED = ".norm_added_q."


def plain_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Published tensors without a common prefix, and without those that no network uses.

    Raises:
        WeightError: they are those of another kind of network; says which.
    """
    for mark, what in _OTHERS.items():
        if found := next((name for name in tensors if mark in name), None):
            raise WeightError(f"{found} says that this is {what}")
    prefix = next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), "")
    return {name.removeprefix(prefix): x for name, x in tensors.items() if _UNUSED not in name}


def matching(tensors: Mapping[str, np.ndarray], config: WanConfig) -> dict[str, np.ndarray]:
    """`plain_names`, of a network as large as the config's.

    Raises:
        WeightError: in one sentence, that these are of another network, and what tells them apart.
    """
    tensors = plain_names(tensors)
    if "patch_embedding.weight" not in tensors:
        raise WeightError(f"no patch_embedding.weight is among them ({len(tensors)} tensors): no transformer of Wan")
    sizes, wanted = _sizes(tensors), vars(config) | {"width": config.width}
    if other := [f"{what} {size}, not {wanted[what]}" for what, size in sizes.items() if size != wanted[what]]:
        raise WeightError(
            f"the weights are of another transformer of Wan than the config describes ({'; '.join(other)}): they want "
            "the folder of their own pipeline beside them"
        )
    return tensors


def completed(config: WanConfig, tensors: Callable[[], Mapping[str, np.ndarray]]) -> WanConfig:
    """The config of a network by its tensors too: BindWeave's `config.json` is that of the I2V it was made of."""
    if not config.image_embed_dim:
        return config
    return dataclasses.replace(config, mllm_embed_dim=_sizes(plain_names(tensors()))["mllm_embed_dim"])


# Tensors by either name, their number of axes, and what the size of one of these is.
_TOLD_BY = (
    ("patch_embedding.weight", 5, 0, "width"),
    ("patch_embedding.weight", 5, 1, "in_channels"),
    (f"{_EMBED}.text_embedder.linear_1.weight", 2, 1, "text_embed_dim"),
    ("text_embedding.0.weight", 2, 1, "text_embed_dim"),
    ("blocks.0.ffn.net.0.proj.weight", 2, 0, "ffn_dim"),
    ("blocks.0.ffn.0.weight", 2, 0, "ffn_dim"),
    (f"{_EMBED}.image_embedder.norm1.weight", 1, 0, "image_embed_dim"),
    ("img_emb.proj.0.weight", 1, 0, "image_embed_dim"),
    (f"{_EMBED}.text_projector.linear_1.weight", 2, 1, "mllm_embed_dim"),
    ("text_projector.linear_1.weight", 2, 1, "mllm_embed_dim"),
)


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What tells the released networks apart, by their tensors; what these do not say is left out."""
    layers = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    found = {"num_layers": max(layers, default=-1) + 1, "image_embed_dim": 0, "mllm_embed_dim": 0}
    for name, axes, axis, what in _TOLD_BY:
        if name in tensors and tensors[name].ndim == axes:
            found[what] = tensors[name].shape[axis]
    return found


# Our fields and theirs.
_FIELDS = {
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "attention_head_dim": "attention_head_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "text_embed_dim": "text_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "norm_eps": "eps",
}
# What files mean that do not say: diffusers' own defaults are those of the 14B network.
_UNSAID = {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}
# What this network is, in diffusers' words: options that exist there and not here.
_FIXED = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024}
_FIXED |= {"pos_embed_seq_len": None}
# What no config of theirs says: see `completed`.
_PROJECTOR_WIDTH = "text_projector_dim"
# Settings of older versions, which nothing computed with.
_IGNORED = ("window_size", "add_img_emb")


def config_from_hf(config: Mapping[str, Any]) -> WanConfig:
    """The config for a `transformer/config.json` of diffusers; its unsaid fields take diffusers' defaults.

    Raises:
        ValueError: naming the fields that describe another network.
    """
    if config.get("_class_name", "WanTransformer3DModel") != "WanTransformer3DModel":
        raise ValueError(f"_class_name is {config['_class_name']!r}; it must be WanTransformer3DModel")
    said = {name: value for name, value in config.items() if not name.startswith("_") and name not in _IGNORED}
    others = ("patch_size", "image_dim", "added_kv_proj_dim", _PROJECTOR_WIDTH)
    problems = unsupported(said, _FIXED, (*_FIELDS.values(), *others))
    time, *patch = checked(said.get("patch_size", (1, 2, 2)), tuple[int, ...], "patch_size") or (0,)
    if time != 1 or len(patch) != 2 or patch[0] != patch[1]:
        problems.append(f"patch_size is {said['patch_size']!r}; only squares of one frame are supported")
    values = {**_UNSAID, **{name: said[theirs] for name, theirs in _FIELDS.items() if theirs in said}}
    # Diffusers lets it be null, for as many as come in.
    if values.get("out_channels", 0) is None:
        values["out_channels"] = values.get("in_channels", WanConfig.in_channels)
    images, added = said.get("image_dim") or 0, said.get("added_kv_proj_dim")
    # One that is described rightly, to know its width.
    right = not problems
    read = {"image_embed_dim": images, "mllm_embed_dim": said.get(_PROJECTOR_WIDTH) or 0}
    ours = network(values | read | {"patch_size": patch[0] if right else 2}, WanConfig)
    if added != (wanted := ours.width if images else None):
        problems.append(f"added_kv_proj_dim is {added!r}; with image_dim {images or None} only {wanted} is supported")
    if problems:
        raise ValueError("this Wan config is not supported: " + ", ".join(problems))
    return ours


def config_to_hf(config: WanConfig) -> dict[str, Any]:
    """The `transformer/config.json` with which diffusers builds the same network.

    Raises:
        ValueError: if diffusers has no such network.
    """
    if config.rope_theta != WanConfig.rope_theta:
        raise ValueError(f"rope_theta is {config.rope_theta}; diffusers always has {WanConfig.rope_theta}")
    return {
        "_class_name": "WanTransformer3DModel",
        **{theirs: getattr(config, name) for name, theirs in _FIELDS.items()},
        "patch_size": [1, config.patch_size, config.patch_size],
        "image_dim": config.image_embed_dim or None,
        "added_kv_proj_dim": config.width if config.image_embed_dim else None,
        **({_PROJECTOR_WIDTH: config.mllm_embed_dim} if config.mllm_embed_dim else {}),
        **_FIXED,
    }
