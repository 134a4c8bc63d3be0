"""Attention for every model, behind one function.

`attention_backend` says which implementation a call takes. Nothing falls back in silence: the choice is made there,
from shapes and dtypes, before anything runs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cinema_jax.models import layers

# Head sizes that cuDNN's fused attention takes on every GPU it supports: multiples of 8 up to this.
_CUDNN_MAX_HEAD_SIZE = 128
# Logits of one head above which a CPU is about as fast or faster one head at a time: they then stay in its cache, and
# memory does not grow with the batch.
_CPU_HEAD_LOGITS = 384 * 384
_MASKED = -1e30


def attention_backend(
    q: Float[Array, "B S N D"] | jax.ShapeDtypeStruct,
    k: Float[Array, "B S2 N2 D"] | jax.ShapeDtypeStruct,
    *,
    bias: bool = False,
    platform: str | None = None,
) -> str:
    """The implementation that `attention` takes for such queries and keys.

    Args:
        q, k: arrays, or only their shapes and dtypes.
        bias: whether a bias is added to the logits.
        platform: "cpu", "gpu" or "tpu"; by default that of the mesh in use, or else JAX's default.

    Returns:
        "cudnn": fused, on GPUs, in 16 bits.
        "xla": all logits at once.
        "xla_heads": one head of one sample at a time, the logits recomputed in the backward pass.
    """
    platform = platform or layers.platform()
    if platform == "gpu":
        fused = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= _CUDNN_MAX_HEAD_SIZE
        return "cudnn" if fused else "xla"
    if platform == "cpu" and q.shape[1] * k.shape[1] >= _CPU_HEAD_LOGITS and not bias:
        return "xla_heads"
    return "xla"


def attention(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S2 N2 D"],
    v: Float[Array, "B S2 N2 D"],
    *,
    kv_lengths: Int[Array, "B"] | None = None,
    segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    bias: Float[Array, "#B N S S2"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B S N D"]:
    """Softmax attention; keys at or past `kv_lengths` are masked, as is what `causal` or unequal `segments` forbid.

    Grouped queries (`N` a multiple of `N2`) are allowed. `scale` defaults to D ** -0.5; `bias` is added to the scaled
    logits. The softmax runs in fp32. `causal` and `segments` want as many queries as keys.

    Raises:
        ValueError: if the heads of `q` are no multiple of those of `k`, or queries and keys differ in number though
            `causal` or `segments` compares them.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} heads; it must be a multiple of the {k.shape[2]} heads of k")
    if (causal or segments is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal or segments with {q.shape[1]} queries and {k.shape[1]} keys; they must be as many")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    backend = attention_backend(q, k, bias=bias is not None)
    if backend == "cudnn":
        return _cudnn(q, k, v, kv_lengths, segments, causal, bias, scale)
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))
    k, v = (jnp.repeat(x, groups, axis=1) if groups > 1 else x for x in (k, v))
    out = (_xla_heads if backend == "xla_heads" else _xla)(q, k, v, kv_lengths, segments, causal, bias)
    return out.transpose(0, 2, 1, 3)


def _cudnn(q, k, v, kv_lengths, segments, causal, bias, scale):
    mask = None if segments is None else _mask(q.shape[1], k.shape[1], None, segments, False)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias is None else bias.astype(q.dtype),
        mask=mask,
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=kv_lengths,
        implementation="cudnn",
    )


def _mask(
    queries: int,
    keys: int,
    lengths: Int[Array, "*B"] | None,
    segments: Int[Array, "*B S"] | None,
    causal: bool,
) -> Bool[Array, "..."] | None:
    """Which key each query may see: (1 or B, 1, 1 or S, S2), or without the first two axes where `B` is empty."""
    masks = []
    if lengths is not None:
        mask = jnp.arange(keys) < lengths[..., None, None]
        masks.append(mask[:, None] if lengths.ndim else mask)
    if segments is not None:
        mask = segments[..., :, None] == segments[..., None, :]
        masks.append(mask[:, None] if segments.ndim > 1 else mask)
    if causal:
        masks.append(jnp.tril(jnp.ones((queries, keys), bool)))
    if not masks:
        return None
    mask = masks[0]
    for other in masks[1:]:
        mask = mask & other
    return mask


def _softmax(logits: Float[Array, "... S S2"], mask: Bool[Array, "..."] | None) -> Float[Array, "... S S2"]:
    return jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, _MASKED), axis=-1)


def _xla(q, k, v, lengths, segments, causal, bias):
    """Heads before tokens: (B, N, S, D); a CPU multiplies them in that order three times as fast as in the other."""
    logits = jnp.einsum("bnsd,bntd->bnst", q, k, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    weights = _softmax(logits, _mask(q.shape[2], k.shape[2], lengths, segments, causal))
    return jnp.einsum("bnst,bntd->bnsd", weights.astype(v.dtype), v)


def _xla_heads(q, k, v, lengths, segments, causal, bias):
    batch, heads, queries, _ = q.shape

    @jax.checkpoint
    def one_head(head):
        q, k, v, length, segment = head
        logits = jnp.einsum("sd,td->st", q, k, preferred_element_type=jnp.float32)
        return _softmax(logits, _mask(*logits.shape, length, segment, causal)).astype(v.dtype) @ v

    q, k, v = (x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v))
    lengths, segments = (None if x is None else jnp.repeat(x, heads, axis=0) for x in (lengths, segments))
    return jax.lax.map(one_head, (q, k, v, lengths, segments)).reshape(batch, heads, queries, -1)
