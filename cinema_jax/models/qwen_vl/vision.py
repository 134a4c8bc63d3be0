"""The vision tower of Qwen2-VL: images of any size, as flat patches, become language-model embeddings.

Qwen2.5-VL's tower, in `vision25.py`, is made of the same attention and merger.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cinema_jax.models.attention import attention
from cinema_jax.models.layers import LayerNorm, Linear, RMSNorm, rotate_halves, scan_layers, stack_layers
from cinema_jax.models.qwen_vl.config import Qwen2VLVisionConfig


def inverse_frequencies(theta: float, dim: int) -> Float[np.ndarray, "half"]:
    """Angles per position of the `dim / 2` rotary pairs, in the reference's fp32 arithmetic."""
    return np.float32(1) / (np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)))


Rotary = tuple[Float[Array, "B S half"], Float[Array, "B S half"]]  # cosines and sines of each token's angles


def patch_rotary(positions: Int[Array, "B P 2"], theta: float, head_dim: int) -> Rotary:
    """Each patch's rotation: the first half of a head's pairs turns with the row, the other with the column."""
    angles = positions[..., None].astype(float) * inverse_frequencies(theta, head_dim // 2)
    angles = angles.reshape(*angles.shape[:2], -1)
    return jnp.cos(angles), jnp.sin(angles)


class VisionAttention(nnx.Module):
    """Full attention inside each segment: an image, or a window of one."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"], rotary: Rotary, segments: Int[Array, "B P"]) -> Float[Array, "B P D"]:
        q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:2], 3 * self.num_heads, -1), 3, axis=2)
        out = attention(rotate_halves(q, *rotary), rotate_halves(k, *rotary), v, segments=segments)
        return self.proj(out.reshape(x.shape))


class VisionMLP(nnx.Module):
    """Two linear layers with the quick GELU, x * sigmoid(1.702 x)."""

    def __init__(self, config: Qwen2VLVisionConfig, *, rngs: nnx.Rngs):
        hidden = config.embed_dim * config.mlp_ratio
        self.fc1 = Linear(config.embed_dim, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, config.embed_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        x = self.fc1(x)
        return self.fc2(x * jax.nn.sigmoid(1.702 * x))


class VisionBlock(nnx.Module):
    """Pre-norm attention and feed-forward layer."""

    def __init__(self, config: Qwen2VLVisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = VisionAttention(config.embed_dim, config.num_heads, rngs=rngs)
        self.mlp = VisionMLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"], rotary: Rotary, segments: Int[Array, "B P"]) -> Float[Array, "B P D"]:
        x = x + self.attn(self.norm1(x), rotary, segments)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """A merge block of neighbouring patches becomes one embedding of the language model."""

    def __init__(self, norm: LayerNorm | RMSNorm, merged_dim: int, out_features: int, *, rngs: nnx.Rngs):
        """`norm` is that of the patches; `merged_dim` is the width of all patches of a block together."""
        self.merged_dim = merged_dim
        self.ln_q = norm
        self.fc1 = Linear(self.merged_dim, self.merged_dim, rngs=rngs)
        self.fc2 = Linear(self.merged_dim, out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B blocks D2"]:
        # The patches of a block stand side by side in the sequence, so that merging is a reshape.
        x = self.ln_q(x).reshape(x.shape[0], -1, self.merged_dim)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Qwen2VLVisionTower(nnx.Module):
    """Patches to language-model embeddings (reference: transformers `Qwen2VisionTransformerPretrainedModel`)."""

    def __init__(self, config: Qwen2VLVisionConfig, out_features: int, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = Linear(config.patch_dim, config.embed_dim, use_bias=False, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: VisionBlock(config, rngs=rngs), config.depth, rngs)
        norm = LayerNorm(config.embed_dim, eps=1e-6)
        self.merger = PatchMerger(norm, config.embed_dim * config.merge_unit, out_features, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "B P patch_dim"],
        segments: Int[Array, "B P"],
        positions: Int[Array, "B P 2"],
    ) -> Float[Array, "B blocks D"]:
        """Embed all images of each sample; `P` must be a multiple of the merge block.

        Patches of different `segments` do not see each other, so neither images nor padding mix. What padding
        becomes is undefined but finite.
        """
        rotary = patch_rotary(positions, self.config.rope_theta, self.config.embed_dim // self.config.num_heads)
        # The processor's patches are fp32: enter in the tower's own dtype, or the whole tower would run in fp32.
        x = self.patch_embed(patches.astype(self.patch_embed.kernel[...].dtype))
        x = scan_layers(self.blocks, x, lambda block, x: block(x, rotary, segments))
        return self.merger(x)
