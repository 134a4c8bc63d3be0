"""Published T5 v1.1 and UMT5 encoders: the names of transformers' `T5EncoderModel` and `UMT5EncoderModel`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cinema_jax.inputs.typed import network
from cinema_jax.models.t5.config import T5Config
from cinema_jax.weights.rules import Rule, linear, norm
from cinema_jax.weights.tensors import WeightError

_SHARED, _TIED = "shared.weight", "encoder.embed_tokens.weight"
_ATTENTION = "encoder.block.{layer}.layer.0"
_MLP = "encoder.block.{layer}.layer.1"

_BIAS = "SelfAttention.relative_attention_bias"
_ALIKE: tuple[Rule, ...] = (
    Rule(_SHARED, "token_embedding", aliases=(_TIED,)),
    *norm(f"{_ATTENTION}.layer_norm", "blocks/attention_norm", bias=False),
    *(r for x in "qkvo" for r in linear(f"{_ATTENTION}.SelfAttention.{x}", f"blocks/{x}", bias=False)),
    *norm(f"{_MLP}.layer_norm", "blocks/mlp_norm", bias=False),
    *(r for x in ("wi_0", "wi_1", "wo") for r in linear(f"{_MLP}.DenseReluDense.{x}", f"blocks/{x}", bias=False)),
    *norm("encoder.final_layer_norm", "final_norm", bias=False),
)
_TABLES = {
    "t5": (*_ALIKE, Rule(f"encoder.block.0.layer.0.{_BIAS}.weight", "relative_attention_bias")),
    "umt5": (*_ALIKE, Rule(f"{_ATTENTION}.{_BIAS}.weight", "blocks/relative_attention_bias")),
}


def table(config: T5Config) -> tuple[Rule, ...]:
    """The rules of an encoder: a UMT5 has its biases in each block."""
    return _TABLES[config.model_type]


def untie(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Published tensors without the second copy of the token embedding that most files carry.

    Raises:
        WeightError: when the two copies differ.
    """
    if _SHARED in tensors and _TIED in tensors and not np.array_equal(tensors[_SHARED], tensors[_TIED]):
        raise WeightError(f"{_SHARED} and {_TIED} differ; in a T5 encoder they are one array")
    return {name: x for name, x in tensors.items() if name != _TIED or _SHARED not in tensors}


def tie(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Exported tensors with the second copy of the token embedding, as the released files have it."""
    return {**tensors, _TIED: tensors[_SHARED]}


# Our fields and the values that files without them mean.
_FIELDS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_UMT5_FIELDS = _FIELDS | {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
# Likewise, of the feed-forward network.
_PROJECTIONS = {"t5": "relu", "umt5": "gated-gelu"}
CLASSES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}


def config_from_hf(values: Mapping[str, Any]) -> T5Config:
    """The sizes in a T5 v1.1 or UMT5 `config.json`.

    Raises:
        ValueError: naming a field whose value this encoder does not implement.
    """
    kind = values.get("model_type", "t5")
    if kind not in CLASSES:
        raise ValueError(f"model_type is {kind!r}; accepted: {', '.join(CLASSES)}")
    if (projection := values.get("feed_forward_proj", _PROJECTIONS[kind])) != "gated-gelu":
        raise ValueError(f"feed_forward_proj is {projection!r}; this T5 v1.1 encoder accepts only 'gated-gelu'")
    fields = _FIELDS if kind == "t5" else _UMT5_FIELDS
    said = {field: values.get(field, default) for field, default in fields.items()}
    return network(said | {"model_type": kind}, T5Config)


def config_to_hf(config: T5Config) -> dict[str, Any]:
    """The `config.json` from which transformers builds the same encoder."""
    return {
        "architectures": [CLASSES[config.model_type]],
        "model_type": config.model_type,
        **{field: getattr(config, field) for field in _FIELDS},
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
