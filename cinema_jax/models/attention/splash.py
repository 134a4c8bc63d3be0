"""Attention by JAX's splash kernels, which hold no logits in memory, forward and backward. TPUs only."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from cinema_jax.models import layers
from cinema_jax.models.attention.blocks import block_sizes, padded
from cinema_jax.models.attention.mesh import Segments

# A remat policy that saves this name does not run the forward kernel again: both its results bear it, the output and
# the log-sum-exp of the logits.
OUTPUT = "attention_output"
# The segment of masked keys: no query's.
_NOWHERE = jnp.iinfo(jnp.int32).min


def splash(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S2 N2 D"],
    v: Float[Array, "B S2 N2 D"],
    lengths: Int[Array, "B"] | None,
    segments: Segments | None,
    *,
    causal: bool,
    scale: float,
    blocks: kernel.BlockSizes | None = None,
) -> Float[Array, "B S N D"]:
    """`attention` on one device; off TPUs the kernels are interpreted, slowly.

    `blocks` are by default those of the table.
    """
    queries, keys, size = q.shape[1], k.shape[1], q.shape[-1]
    # Zeros change no logit, and the output's are cut off.
    q, k, v = (pad(x, 3, 64 if size <= 64 else 128) for x in (q, k, v))
    blocks = blocks or block_sizes(device_kind(), q.shape[-1], queries, keys)
    shape = padded(blocks, queries, keys)
    # The kernel takes heads before tokens, and does not scale.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))
    q, k, v = (pad(x, 2, length) for x, length in ((q, shape[0]), (k, shape[1]), (v, shape[1])))
    mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    attend = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=blocks,
        residual_checkpoint_name=OUTPUT,
        interpret=layers.platform() != "tpu",
    )
    ids = _segment_ids(q.shape[0], (queries, keys), shape, lengths, segments)
    out = jax.vmap(attend)(q, k, v, ids)
    return out[:, :, :queries, :size].transpose(0, 2, 1, 3)


def _segment_ids(
    batch: int,
    tokens: tuple[int, int],
    shape: tuple[int, int],
    lengths: Int[Array, "B"] | None,
    segments: Segments | None,
) -> kernel.SegmentIds | None:
    """Masked keys, and those of the padding, belong to no query's segment; all queries keep theirs, valid or not."""
    if lengths is None and segments is None and tokens[1] == shape[1]:
        return None
    q, kv = segments or (jnp.zeros((batch, length), jnp.int32) for length in tokens)
    if lengths is not None:
        kv = jnp.where(jnp.arange(tokens[1]) < lengths[:, None], kv, _NOWHERE)
    return kernel.SegmentIds(
        pad(q.astype(jnp.int32), 1, shape[0]), pad(kv.astype(jnp.int32), 1, shape[1], fill=_NOWHERE)
    )


def pad(x: jax.Array, axis: int, length: int, fill: int = 0) -> jax.Array:
    """`x` with so many entries along an axis, the new ones `fill`."""
    missing = length - x.shape[axis]
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill) if missing else x


def device_kind() -> str:
    """What the program being traced will run on, as JAX names it: "TPU v5 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind
