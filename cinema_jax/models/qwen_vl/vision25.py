"""The vision tower of Qwen2.5-VL: most blocks attend within square windows of an image, a few to the whole of it.

Reference: arXiv 2502.13923, section 2.1.1; transformers `Qwen2_5_VisionTransformerPretrainedModel`. The reference sorts
the patches by window; here they stay where they are, and windows are segments of the attention.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cinema_jax.models.layers import Linear, RMSNorm, SwiGLU, scan_layers, stack_layers
from cinema_jax.models.qwen_vl.config import Qwen25VLVisionConfig
from cinema_jax.models.qwen_vl.vision import PatchMerger, Rotary, VisionAttention, patch_rotary


def window_segments(segments: Int[Array, "B P"], positions: Int[Array, "B P 2"], side: int) -> Int[Array, "B P"]:
    """A number for each window of `side` x `side` patches of each image, unique in its sample; padding stays 0.

    Windows start at an image's first row and column; those at its other edges hold what is left.
    """
    # Padding may say any position, and must not decide how many windows there are.
    windows = jnp.where(segments[..., None] > 0, positions // side, 0)
    # images x rows x columns of windows, the most of each: at the released sizes, int32 holds that for any images of
    # 39,000 patches together.
    rows, columns = jnp.moveaxis(windows.max(axis=1, keepdims=True) + 1, -1, 0)
    return (segments * rows + windows[..., 0]) * columns + windows[..., 1]


class WindowVisionBlock(nnx.Module):
    """Pre-norm attention and gated feed-forward layer."""

    def __init__(self, config: Qwen25VLVisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, eps=1e-6)
        self.norm2 = RMSNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config.hidden_size, config.num_heads, rngs=rngs)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, use_bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"], rotary: Rotary, segments: Int[Array, "B P"]) -> Float[Array, "B P D"]:
        x = x + self.attn(self.norm1(x), rotary, segments)
        return x + self.mlp(self.norm2(x))


class Qwen25VLVisionTower(nnx.Module):
    """Patches to language-model embeddings."""

    def __init__(self, config: Qwen25VLVisionConfig, out_features: int, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = Linear(config.patch_dim, config.hidden_size, use_bias=False, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: WindowVisionBlock(config, rngs=rngs), config.depth, rngs)
        norm = RMSNorm(config.hidden_size, eps=1e-6)
        self.merger = PatchMerger(norm, config.hidden_size * config.merge_unit, out_features, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "B P patch_dim"],
        segments: Int[Array, "B P"],
        positions: Int[Array, "B P 2"],
    ) -> Float[Array, "B blocks D"]:
        """Embed all images of each sample; as `Qwen2VLVisionTower`."""
        config = self.config
        rotary = patch_rotary(positions, config.rope_theta, config.hidden_size // config.num_heads)
        windows = window_segments(segments, positions, config.window_patches)
        sees_all = jnp.asarray(np.isin(np.arange(config.depth), config.fullatt_block_indexes))

        def apply(block, carry):
            x, index = carry
            return block(x, rotary, jnp.where(sees_all[index], segments, windows)), index + 1

        # The processor's patches are fp32: enter in the tower's own dtype, or the whole tower would run in fp32.
        x = self.patch_embed(patches.astype(self.patch_embed.kernel[...].dtype))
        x, _ = scan_layers(self.blocks, (x, jnp.int32(0)), apply)
        return self.merger(x)
