"""The T5 v1.1 text encoder (arXiv 1910.10683; v1.1: gated GELU, no sharing with the output layer), and UMT5's.

Same mathematics as transformers' `T5EncoderModel` and `UMT5EncoderModel` in evaluation mode. Published T5 v1.1 was
trained without dropout, so there is none here.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cinema_jax.models.activations import named
from cinema_jax.models.attention import attention
from cinema_jax.models.layers import Linear, RMSNorm, scan_layers, stack_layers
from cinema_jax.models.t5.config import T5Config


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "S S"]:
    """Which learned bias the key (second axis) gives to the query (first axis), in [0, num_buckets).

    Half of the buckets are for keys after the query; of each half, half are single distances and half grow
    logarithmically up to `max_distance`. Formula and fp32 rounding are T5's (`_relative_position_bucket`).
    """
    half = num_buckets // 2
    exact = half // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int64)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, np.minimum(far, half - 1))


def _bias(table: Float[Array | np.ndarray, "buckets N"], buckets: Int[np.ndarray, "T T"]) -> Float[Array, "1 N T T"]:
    return jnp.take(table, buckets, axis=0).transpose(2, 0, 1)[None]


def _bias_table(config: T5Config, rngs: nnx.Rngs) -> nnx.Param:
    shape = (config.relative_attention_num_buckets, config.num_heads)
    return nnx.Param(jax.random.normal(rngs.params(), shape) * config.d_model**-0.5)


def _dense(inputs: int, outputs: int, std: float, rngs: nnx.Rngs) -> Linear:
    return Linear(inputs, outputs, use_bias=False, kernel_init=nnx.initializers.normal(std), rngs=rngs)


class T5Block(nnx.Module):
    """Pre-norm self-attention and gated-GELU feed-forward, each with a residual connection."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c, inner = config, config.num_heads * config.d_kv
        # T5's own initialisers: attention does not scale its logits, so the query's initialiser carries d_kv ** -0.5.
        self.attention_norm = RMSNorm(c.d_model, eps=c.layer_norm_epsilon)
        self.q = _dense(c.d_model, inner, (c.d_model * c.d_kv) ** -0.5, rngs)
        self.k = _dense(c.d_model, inner, c.d_model**-0.5, rngs)
        self.v = _dense(c.d_model, inner, c.d_model**-0.5, rngs)
        self.o = _dense(inner, c.d_model, inner**-0.5, rngs)
        self.mlp_norm = RMSNorm(c.d_model, eps=c.layer_norm_epsilon)
        self.wi_0 = _dense(c.d_model, c.d_ff, c.d_model**-0.5, rngs)
        self.wi_1 = _dense(c.d_model, c.d_ff, c.d_model**-0.5, rngs)
        self.wo = _dense(c.d_ff, c.d_model, c.d_ff**-0.5, rngs)
        self.num_heads = c.num_heads
        if c.model_type == "umt5":
            self.relative_attention_bias = _bias_table(c, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: Float[Array, "1 N T T"] | None,
        buckets: Int[np.ndarray, "T T"],
        lengths: Int[Array, "B"] | None,
    ) -> Float[Array, "B T D"]:
        """One layer; keys at or past `lengths` are masked.

        Args:
            bias: is added to the unscaled logits; None: the layer's own, by the `buckets` of its distances.
        """
        bias = _bias(self.relative_attention_bias[...], buckets) if bias is None else bias
        y = self.attention_norm(x)
        q, k, v = (project(y).reshape(*y.shape[:2], self.num_heads, -1) for project in (self.q, self.k, self.v))
        y = attention(q, k, v, kv_lengths=lengths, bias=bias, scale=1.0)
        x = x + self.o(y.reshape(*y.shape[:2], -1))
        y = self.mlp_norm(x)
        return x + self.wo(jax.nn.gelu(self.wi_0(y), approximate=True) * self.wi_1(y))


class T5Encoder(nnx.Module):
    """Tokens in, features out."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        # Plain parameters: `nnx.Embed` fixes its output's dtype when it is built, whatever the weights become later.
        self.token_embedding = nnx.Param(jax.random.normal(rngs.params(), (c.vocab_size, c.d_model)))
        if c.model_type == "t5":
            # Published inside block 0; all blocks use it.
            self.relative_attention_bias = _bias_table(c, rngs)
        self.blocks = stack_layers(lambda rngs: T5Block(c, rngs=rngs), c.num_layers, rngs)
        self.final_norm = RMSNorm(c.d_model, eps=c.layer_norm_epsilon)

    def features(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What a video transformer is told of texts that are padded with 0.

        T5's features of all positions, padding included and unmasked, as CogVideoX was trained; UMT5's without padding,
        in whose place are zeros, as Wan was.
        """
        if self.config.model_type == "t5":
            return self(tokens)
        lengths = jnp.sum(tokens != 0, axis=1)
        real = jnp.arange(tokens.shape[1]) < lengths[:, None]
        # Selected, not multiplied: what stands in padding need not be finite.
        return jnp.where(real[..., None], self(tokens, lengths), 0)

    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"] | None = None, *, remat: str = "none"
    ) -> Float[Array, "B T D"]:
        """Features of all positions.

        Args:
            tokens: ids in [0, vocab_size), padded at the end (T5 pads with 0).
            lengths: number of real tokens, to hide the padding from attention. None lets padding take part as ordinary
                tokens: that is how CogVideoX computes its 226 text features, and what its transformer expects.
            remat: what the backward pass finds of each layer; see `scan_layers`.
        """
        c = self.config
        distances = c.relative_attention_num_buckets, c.relative_attention_max_distance
        buckets = relative_position_buckets(tokens.shape[1], *distances)
        bias = _bias(self.relative_attention_bias[...], buckets) if c.model_type == "t5" else None
        x = named(jnp.take(self.token_embedding[...], tokens, axis=0), "looked_up")
        x = scan_layers(self.blocks, x, lambda block, x: block(x, bias, buckets, lengths), remat=remat)
        return self.final_norm(x)
