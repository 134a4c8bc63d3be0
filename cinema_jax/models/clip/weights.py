"""Published CLIP vision towers: the names of transformers' `CLIPVisionModel`, with and without `vision_model.`."""

from collections.abc import Mapping
from typing import Any

from cinema_jax.errors import unsupported
from cinema_jax.inputs.typed import network
from cinema_jax.models.clip.config import CLIPVisionConfig
from cinema_jax.weights.rules import Rule, Transform, linear, norm

CLASS = "CLIPVisionModel"
# (out, colour, row, column) <-> (row x column x colour, out)
_PATCH = Transform(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x: x.reshape(*2 * (round((x.shape[0] / 3) ** 0.5),), 3, -1).transpose(3, 2, 0, 1),
)
# As files in circulation have it, and transformers since version 5 has not.
_PREFIX = "vision_model."
_LAYER, _EMBED = "encoder.layers.{layer}", "embeddings"
_OURS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _published(rule: Rule) -> Rule:
    return Rule(f"{_PREFIX}{rule.name}", rule.path, rule.transform, (rule.name,))


TABLE: tuple[Rule, ...] = tuple(
    map(
        _published,
        (
            Rule(f"{_EMBED}.class_embedding", "class_token"),
            Rule(f"{_EMBED}.patch_embedding.weight", "patch_embed/kernel", _PATCH),
            Rule(f"{_EMBED}.position_embedding.weight", "positions"),
            *norm("pre_layrnorm", "first_norm"),
            *norm(f"{_LAYER}.layer_norm1", "blocks/attention_norm"),
            *(r for x, ours in _OURS.items() for r in linear(f"{_LAYER}.self_attn.{x}", f"blocks/{ours}")),
            *norm(f"{_LAYER}.layer_norm2", "blocks/mlp_norm"),
            *linear(f"{_LAYER}.mlp.fc1", "blocks/up"),
            *linear(f"{_LAYER}.mlp.fc2", "blocks/down"),
            *norm("post_layernorm", "last_norm"),
        ),
    )
)
# Our fields and the values that files without them mean.
_FIELDS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def without_positions(tensors: Mapping[str, Any], config: CLIPVisionConfig) -> dict[str, Any]:
    """Published tensors without the numbers of the positions, 0, 1, 2, ..., which older files carry."""
    return {name: x for name, x in tensors.items() if not name.endswith(f"{_EMBED}.position_ids")}


def config_from_hf(values: Mapping[str, Any]) -> CLIPVisionConfig:
    """The sizes in the `config.json` of a vision tower.

    Raises:
        ValueError: naming a field that describes another network.
    """
    if wrong := unsupported({"num_channels": values.get("num_channels", 3)}, {"num_channels": 3}, ()):
        raise ValueError("this CLIP vision tower is not supported: " + ", ".join(wrong))
    return network({field: values.get(field, default) for field, default in _FIELDS.items()}, CLIPVisionConfig)


def config_to_hf(config: CLIPVisionConfig) -> dict[str, Any]:
    """The `config.json` from which transformers builds the same tower."""
    fields = {field: getattr(config, field) for field in _FIELDS}
    return {"architectures": [CLASS], "model_type": "clip_vision_model", "num_channels": 3, **fields}
