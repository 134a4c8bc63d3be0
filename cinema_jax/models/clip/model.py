"""The vision tower of CLIP (arXiv 2103.00020; reference: `CLIPVisionModel` of transformers): pictures as tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from cinema_jax.models.attention import attention
from cinema_jax.models.clip.config import CLIPVisionConfig
from cinema_jax.models.layers import LayerNorm, Linear, scan_layers, stack_layers

# Of RGB in [0, 1], over what CLIP was trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def squashed(pictures: UInt8[Array, "B height width 3"], size: int) -> Float[Array, "B {size} {size} 3"]:
    """Whole pictures as the tower reads them: `size` pixels high and wide whatever their aspect, and normalised.

    Bilinear, over as many pixels as one of the result stands for: torchvision's `Resize` of floating-point pictures.
    """
    pixels = pictures.astype(float) / 255
    pixels = jax.image.resize(pixels, (len(pixels), size, size, 3), "linear", antialias=True)
    return (pixels - jnp.array(MEAN)) / jnp.array(STD)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward network."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads, self.activation = config.num_attention_heads, config.hidden_act
        self.attention_norm, self.mlp_norm = (LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.to_q, self.to_k, self.to_v, self.to_out = (Linear(width, width, rngs=rngs) for _ in range(4))
        self.up = Linear(width, config.intermediate_size, rngs=rngs)
        self.down = Linear(config.intermediate_size, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        y = self.attention_norm(x)
        heads = (project(y).reshape(*y.shape[:2], self.num_heads, -1) for project in (self.to_q, self.to_k, self.to_v))
        x = x + self.to_out(attention(*heads).reshape(x.shape))
        return x + self.down(_ACTIVATIONS[self.activation](self.up(self.mlp_norm(x))))


class CLIPVision(nnx.Module):
    """Pictures to tokens. The last layer and the last norm are there for the sake of whole checkpoints."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        width, init = config.hidden_size, nnx.initializers.normal(0.02)
        self.config = config
        self.patch_embed = Linear(3 * config.patch_size**2, width, use_bias=False, rngs=rngs)
        self.class_token = nnx.Param(init(rngs.params(), (width,)))
        self.positions = nnx.Param(init(rngs.params(), (config.tokens, width)))
        self.first_norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.blocks = stack_layers(lambda rngs: Block(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.last_norm = LayerNorm(width, eps=config.layer_norm_eps)

    def __call__(self, pixels: Float[Array, "B size size 3"], layer: int = -2) -> Float[Array, "B S D"]:
        """The tokens after some layers, that of the whole picture first; as `hidden_states[layer]` of transformers.

        Args:
            pixels: as `squashed` makes them, of the config's size.
            layer: 0: before the first layer; negative ones count from the end, -2 leaves out the last layer.

        Raises:
            ValueError: if the pictures are of another size, or there is no such layer.
        """
        size, count = self.config.image_size, self.config.num_hidden_layers
        if pixels.shape[1:3] != (size, size):
            raise ValueError(f"pixels are {pixels.shape[1]} x {pixels.shape[2]}; image_size is {size}")
        if not -count - 1 <= layer <= count:
            raise ValueError(f"layer is {layer}; it must be from {-count - 1} to {count}")
        patches = self.patch_embed(self._patches(pixels).astype(self.class_token.dtype))
        first = jnp.broadcast_to(self.class_token[...], (len(pixels), 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], axis=1) + self.positions[...]
        return scan_layers(self.blocks, self.first_norm(x), lambda block, x: block(x), count=layer % (count + 1))

    def _patches(self, pixels: Float[Array, "B size size 3"]) -> Float[Array, "B P patch"]:
        """Flat patches (row, column, colour), row by row."""
        p, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        grid = pixels[:, : side * p, : side * p].reshape(-1, side, p, side, p, 3)
        return grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(pixels), side * side, p * p * 3)
