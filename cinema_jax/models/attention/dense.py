"""Attention that XLA or cuDNN runs: with the logits in memory, all or one head's, or fused on GPUs.

All take `(q, k, v, lengths, segments)` like `attention`, but segments as a pair, those of the queries and of the keys.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30


def cudnn(q, k, v, lengths, segments, *, causal, scale, bias=None):
    """Fused. `segments` make a mask of all queries and keys."""
    queries, keys = q.shape[1], k.shape[1]
    if keys % 2 and lengths is None:
        lengths = jnp.full(q.shape[0], keys, jnp.int32)
    # In training it takes even numbers of them alone: one more, which nobody sees, and whose result nobody reads.
    q, k, v = (_even(x, 1) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias is None else _even(_even(bias.astype(q.dtype), 2), 3),
        mask=None
        if segments is None
        else _mask(q.shape[1], k.shape[1], None, tuple(_even(x, 1) for x in segments), False),
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :queries]


def _even(x: Array, axis: int) -> Array:
    """`x` with a row of zeros more along an axis of odd size."""
    if x.shape[axis] % 2 == 0:
        return x
    return jnp.pad(x, [(0, 1) if i == axis else (0, 0) for i in range(x.ndim)])


def xla(q, k, v, lengths, segments, *, causal, scale, bias=None):
    """All logits at once."""
    q, k, v = _heads_first(q * scale, k, v)
    logits = jnp.einsum("bnsd,bntd->bnst", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    logits = logits if bias is None else logits + bias
    weights = _softmax(logits, _mask(q.shape[2], k.shape[2], lengths, segments, causal))
    return jnp.einsum("bnst,bntd->bnsd", weights.astype(v.dtype), v).transpose(0, 2, 1, 3)


def xla_heads(q, k, v, lengths, segments, *, causal, scale):
    """One head of one sample at a time, the logits recomputed in the backward pass."""
    q, k, v = _heads_first(q * scale, k, v)
    batch, heads, queries, _ = q.shape

    @jax.checkpoint
    def one_head(head):
        q, k, v, length, segments = head
        logits = jnp.einsum("sd,td->st", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        return _softmax(logits, _mask(*logits.shape, length, segments, causal)).astype(v.dtype) @ v

    q, k, v = (x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v))
    lengths, segments = jax.tree.map(lambda x: jnp.repeat(x, heads, axis=0), (lengths, segments))
    out = jax.lax.map(one_head, (q, k, v, lengths, segments)).reshape(batch, heads, queries, -1)
    return out.transpose(0, 2, 1, 3)


def _heads_first(q, k, v):
    """Heads before tokens, (B, N, S, D), and as many of `k` and `v` as of `q`.

    A CPU multiplies them in that order three times as fast as in the other.
    """
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return q, *(jnp.repeat(x, groups, axis=1) if groups > 1 else x for x in (k, v))


def _mask(
    queries: int,
    keys: int,
    lengths: Int[Array, "*B"] | None,
    segments: tuple[Int[Array, "*B S"], Int[Array, "*B S2"]] | None,
    causal: bool,
) -> Bool[Array, "..."] | None:
    """Which key each query may see: (1 or B, 1, 1 or S, S2), or without the first two axes where `B` is empty."""
    masks = []
    if lengths is not None:
        mask = jnp.arange(keys) < lengths[..., None, None]
        masks.append(mask[:, None] if lengths.ndim else mask)
    if segments is not None:
        mask = segments[0][..., :, None] == segments[1][..., None, :]
        masks.append(mask[:, None] if mask.ndim > 2 else mask)
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
