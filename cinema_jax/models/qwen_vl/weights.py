"""Names and layouts of Qwen2-VL and Qwen2.5-VL checkpoints.

We write the released names (`visual.*`, `model.layers.*`), which every version of transformers loads, and also read
those of transformers 5 (`model.visual.*`, `model.language_model.*`).
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from cinema_jax.models.qwen_vl.config import Qwen2VLConfig, Qwen25VLVisionConfig, VisionConfig
from cinema_jax.weights.rules import Rule, Transform, linear, norm
from cinema_jax.weights.tensors import WeightError

_HEAD = "lm_head.weight"
_EMBEDDING = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")


def _patch_embed(config: VisionConfig) -> Transform:
    """A convolution whose stride is its kernel is a linear layer on flat patches."""
    kernel = (3, config.temporal_patch_size, config.patch_size, config.patch_size)
    return Transform(lambda x: x.reshape(x.shape[0], -1).T, lambda x: x.T.reshape(-1, *kernel))


def _vision(config: VisionConfig) -> tuple[Rule, ...]:
    newer = isinstance(config, Qwen25VLVisionConfig)  # SwiGLU in place of two layers, RMSNorm of LayerNorm
    feed_forward = ("gate_proj", "up_proj", "down_proj") if newer else ("fc1", "fc2")
    name = "visual.patch_embed.proj.weight"
    rules = (Rule(name, "visual/patch_embed/kernel", _patch_embed(config), (f"model.{name}",)),)
    for part in ("attn.qkv", "attn.proj", *(f"mlp.{name}" for name in feed_forward)):
        name = f"visual.blocks.{{layer}}.{part}"
        rules += linear(name, f"visual/blocks/{part.replace('.', '/')}", f"model.{name}")
    for part in ("norm1", "norm2"):
        name = f"visual.blocks.{{layer}}.{part}"
        rules += norm(name, f"visual/blocks/{part}", f"model.{name}", bias=not newer)
    rules += norm("visual.merger.ln_q", "visual/merger/ln_q", "model.visual.merger.ln_q", bias=not newer)
    rules += linear("visual.merger.mlp.0", "visual/merger/fc1", "model.visual.merger.mlp.0")
    return rules + linear("visual.merger.mlp.2", "visual/merger/fc2", "model.visual.merger.mlp.2")


def _text() -> tuple[Rule, ...]:
    rules = (Rule(_EMBEDDING[0], "embed_tokens/embedding", aliases=_EMBEDDING[1:]),)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        name, bias = f"layers.{{layer}}.{part}", not part.endswith("o_proj")
        path = f"layers/{part.replace('.', '/')}"
        rules += linear(f"model.{name}", path, f"model.language_model.{name}", bias=bias)
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = f"layers.{{layer}}.mlp.{part}"
        rules += linear(f"model.{name}", f"layers/mlp/{part}", f"model.language_model.{name}", bias=False)
    for part in ("input_layernorm", "post_attention_layernorm"):
        name = f"layers.{{layer}}.{part}"
        rules += norm(f"model.{name}", f"layers/{part}", f"model.language_model.{name}", bias=False)
    return rules + norm("model.norm", "norm", "model.language_model.norm", bias=False)


def table(config: Qwen2VLConfig) -> tuple[Rule, ...]:
    """The rules of a model; one with tied embeddings has no output layer of its own (see `drop_head`)."""
    head = () if config.tie_word_embeddings or not config.output_layer else linear("lm_head", "lm_head", bias=False)
    return _vision(config.vision) + _text() + head


def with_what_is_there(config: Qwen2VLConfig, names: Iterable[str]) -> Qwen2VLConfig:
    """The config of weights with these names, ours or published ones: some lack the output layer."""
    if config.tie_word_embeddings:
        return config
    return dataclasses.replace(config, output_layer=any("lm_head" in name for name in names))


def drop_head(tensors: Mapping[str, np.ndarray], config: Qwen2VLConfig) -> dict[str, np.ndarray]:
    """Published tensors without an output layer that the model does not have.

    Some checkpoints of tied models carry a copy of the embedding.

    Raises:
        WeightError: if the copy differs from the embedding, so that leaving it out would change the model.
    """
    tensors = dict(tensors)
    if not config.output_layer:
        tensors.pop(_HEAD, None)
    if config.tie_word_embeddings and _HEAD in tensors:
        head = tensors.pop(_HEAD)
        embedding = next((tensors[name] for name in _EMBEDDING if name in tensors), None)
        if embedding is not None and not np.array_equal(head, embedding):
            raise WeightError(f"{_HEAD} differs from {_EMBEDDING[0]}, but tie_word_embeddings is true")
    return tensors
