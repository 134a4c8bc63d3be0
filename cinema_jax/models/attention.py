"""Attention for every model, behind one function."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    logits. The softmax runs in fp32.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = jnp.einsum("bsnd,btnd->bnst", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    s, t = logits.shape[-2:]
    mask = jnp.ones((1, 1, s, t), bool)
    if kv_lengths is not None:
        mask = mask & (jnp.arange(t) < kv_lengths[:, None])[:, None, None]
    if causal:
        mask = mask & jnp.tril(jnp.ones((s, t), bool))
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1).astype(v.dtype)
    return jnp.einsum("bnst,btnd->bsnd", weights, v)
