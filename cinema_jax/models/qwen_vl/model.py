"""Qwen2-VL and Qwen2.5-VL: a language model that reads images.

arXiv 2409.12191 and 2502.13923; reference: transformers `modeling_qwen2_vl` and `modeling_qwen2_5_vl`. The two differ
in their vision towers alone: for images, unlike videos, Qwen2.5-VL's M-RoPE positions are Qwen2-VL's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cinema_jax.errors import InputError
from cinema_jax.models.activations import named
from cinema_jax.models.attention import attention
from cinema_jax.models.layers import Linear, RMSNorm, SwiGLU, rotate_halves, scan_layers, stack_layers
from cinema_jax.models.qwen_vl.config import MLLMInputs, Qwen2VLConfig, Qwen2VLVisionConfig, Qwen25VLVisionConfig
from cinema_jax.models.qwen_vl.vision import Qwen2VLVisionTower, Rotary, inverse_frequencies
from cinema_jax.models.qwen_vl.vision25 import Qwen25VLVisionTower

Queries = Float[Array, "B L N size"]
Keys = Float[Array, "B L N2 size"]  # and values, of as many heads or fewer
# What becomes of queries, keys and values: what is attended to, and what is kept of keys and values.
Attend = Callable[[Queries, Keys, Keys], tuple[Queries, Any]]


def mrope(positions: Int[Array, "B 3 L"], config: Qwen2VLConfig) -> Rotary:
    """Each token's rotation: the first pairs turn with time, the next with the row, the last with the column."""
    axis = np.repeat(np.arange(3), config.mrope_section)
    turning = positions[:, axis].swapaxes(1, 2).astype(float)
    angles = turning * inverse_frequencies(config.rope_theta, config.head_dim)
    return jnp.cos(angles), jnp.sin(angles)


class Embedding(nnx.Module):
    """A table of token embeddings, in the dtype it has now (`nnx.Embed` would keep the one it was built with)."""

    def __init__(self, config: Qwen2VLConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        # As large as what the layers add: or else a trained state no longer tells its own token, and an aligner that
        # reads the states learns little. A table that is the output layer too must start small.
        std = 0.02 if config.tie_word_embeddings else 1.0
        self.embedding = nnx.Param(nnx.initializers.normal(std)(rngs.params(), shape, jnp.float32))

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return jnp.take(self.embedding[...], tokens, axis=0)

    def attend(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The table as an output layer: a logit for each token."""
        return x @ self.embedding[...].T


class DecoderAttention(nnx.Module):
    """Causal self-attention with grouped queries; q, k and v have a bias, the output has none."""

    def __init__(self, config: Qwen2VLConfig, *, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, kv_width, rngs=rngs)
        self.v_proj = Linear(width, kv_width, rngs=rngs)
        self.o_proj = Linear(width, width, use_bias=False, rngs=rngs)

    def project(self, x: Float[Array, "B L D"], rotary: Rotary) -> tuple[Queries, Keys, Keys]:
        """Queries, keys and values; the first two are turned by their positions."""
        q, k, v = (
            project(x).reshape(*x.shape[:2], -1, self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate_halves(q, *rotary), rotate_halves(k, *rotary), v


class DecoderLayer(nnx.Module):
    """Pre-norm attention and feed-forward layer."""

    def __init__(self, config: Qwen2VLConfig, *, rngs: nnx.Rngs):
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm = norm()
        self.self_attn = DecoderAttention(config, rngs=rngs)
        self.post_attention_layernorm = norm()
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], rotary: Rotary, attend: Attend) -> tuple[Float[Array, "B L D"], Any]:
        """The layer's output, and what `attend` keeps of keys and values."""
        out, kept = attend(*self.self_attn.project(self.input_layernorm(x), rotary))
        x = x + self.self_attn.o_proj(out.reshape(x.shape))
        return x + self.mlp(self.post_attention_layernorm(x)), kept


def attend_causally(q: Queries, k: Keys, v: Keys, lengths: Int[Array, "B"]) -> tuple[Queries, tuple[Keys, Keys]]:
    """Each token attends to those before it and itself; keys and values are kept."""
    return attention(q, k, v, kv_lengths=lengths, causal=True), (k, v)


def build_vision_tower(
    config: Qwen2VLVisionConfig | Qwen25VLVisionConfig, out_features: int, *, rngs: nnx.Rngs
) -> Qwen2VLVisionTower | Qwen25VLVisionTower:
    """The tower that belongs to a vision config; its output is `out_features` wide."""
    tower = Qwen25VLVisionTower if isinstance(config, Qwen25VLVisionConfig) else Qwen2VLVisionTower
    return tower(config, out_features, rngs=rngs)


class Qwen2VL(nnx.Module):
    """The whole model: hidden states for conditioning, logits for training and answering.

    Its vision tower makes it a Qwen2-VL or a Qwen2.5-VL; `config.vision` says which.

    Linear layers start as Flax does it: small models learn faster from there than from the reference's normal(0.02).
    """

    def __init__(self, config: Qwen2VLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.visual = build_vision_tower(config.vision, config.hidden_size, rngs=rngs)
        self.embed_tokens = Embedding(config, rngs=rngs)
        self.layers = stack_layers(lambda rngs: DecoderLayer(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.output_layer and not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs)

    def embed(self, inputs: MLLMInputs) -> Float[Array, "B L D"]:
        """Token embeddings, those of image tokens replaced by the merged patches, in order."""
        x = named(self.embed_tokens(inputs.tokens), "looked_up")
        if inputs.patches.shape[1] == 0:
            return x
        images = self.visual(inputs.patches, inputs.patch_segments, inputs.patch_positions)
        is_image = inputs.tokens == self.config.image_token_id
        index = jnp.cumsum(is_image, axis=1) - 1
        blocks = jnp.sum(inputs.patch_segments > 0, axis=1, keepdims=True) // self.config.vision.merge_unit
        # An image token beyond the last block (a model may generate one) keeps its own embedding.
        is_image &= index < blocks
        placed = jnp.take_along_axis(images, jnp.where(is_image, index, 0)[..., None], axis=1)
        return jnp.where(is_image[..., None], placed.astype(x.dtype), x)

    def decode(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B 3 L"], lengths: Int[Array, "B"], layer: int = -1
    ) -> Float[Array, "B L D"]:
        """The state after `layer` decoder layers, of embedded tokens; see `hidden_states`."""
        last = self.config.num_hidden_layers
        if not -last - 1 <= layer <= last:
            raise InputError(f"layer is {layer}, accepted is {-last - 1} to {last} for {last} decoder layers")
        layer %= last + 1
        rotary = mrope(positions, self.config)
        attend = partial(attend_causally, lengths=lengths)
        x = scan_layers(self.layers, x, lambda block, x: block(x, rotary, attend)[0], count=layer)
        x = self.norm(x) if layer == last else x
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        return jnp.where(valid[..., None], x, 0)

    def hidden_states(self, inputs: MLLMInputs, layer: int = -1) -> Float[Array, "B L D"]:
        """The state after `layer` decoder layers, which are the only ones that run; padding is zero.

        As transformers' `hidden_states[layer]`: 0 is the embeddings, `num_hidden_layers` (or -1) the output of the
        final norm, any other number the raw state after that many layers.
        """
        inputs = jax.tree.map(jnp.asarray, inputs)
        return self.decode(self.embed(inputs), inputs.positions, inputs.lengths, layer)

    def unembed(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Logits of final states.

        Raises:
            InputError: the model has no output layer.
        """
        if not self.config.speaks:
            raise InputError("this multimodal LLM has no output layer (lm_head.weight): it can read, but not speak")
        return self.embed_tokens.attend(x) if self.config.tie_word_embeddings else self.lm_head(x)

    def logits(self, inputs: MLLMInputs) -> Float[Array, "B L V"]:
        """Logits of the token that follows each token."""
        return self.unembed(self.hidden_states(inputs))
