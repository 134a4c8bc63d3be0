"""The judge: one small convolutional trunk reads frames and reference pictures.

A frame becomes a map of places, 4x4 pixels each: a unit embedding of the subject that is there, and the logit of a
subject's centre being there (the heat map of CenterNet, arXiv 1904.07850). A reference becomes one unit embedding.
Their inner products, trained by InfoNCE (arXiv 1807.03748), say who is where.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cinema_jax.evaluation.judge.config import JudgeConfig


class Seen(NamedTuple):
    """What the judge sees in frames."""

    embeddings: Float[Array, "B h w E"]  # of length 1
    heat: Float[Array, "B h w"]  # logit of a subject's centre
    background: Float[Array, "B P"]  # logits of the places of `critters.background.PLACES`


class Block(nnx.Module):
    """Twice norm, GELU and convolution, beside a shortcut."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm1, self.conv1 = nnx.RMSNorm(width, rngs=rngs), nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm2, self.conv2 = nnx.RMSNorm(width, rngs=rngs), nnx.Conv(width, width, (3, 3), rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        y = self.conv1(jax.nn.gelu(self.norm1(x)))
        return x + self.conv2(jax.nn.gelu(self.norm2(y)))


class Judge(nnx.Module):
    """The trunk and its heads. Pictures are in [-1, 1], their sides multiples of 8."""

    def __init__(self, config: JudgeConfig, *, rngs: nnx.Rngs):
        width, deep = config.width, config.deep_width
        self.stem = nnx.Conv(3, width // 2, (3, 3), strides=2, rngs=rngs)
        self.down = nnx.Conv(width // 2, width, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(config.blocks)])
        self.deeper = nnx.Conv(width, deep, (3, 3), strides=2, rngs=rngs)
        self.deep_blocks = nnx.List([Block(deep, rngs=rngs) for _ in range(config.deep_blocks)])
        self.up = nnx.Linear(deep, width, rngs=rngs)
        self.last = Block(width, rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.embed = nnx.Linear(width, config.embedding, rngs=rngs)
        self.heat = nnx.Linear(width, 1, rngs=rngs)
        self.pool = nnx.Linear(width, 1, rngs=rngs)
        self.background = nnx.Linear(deep, config.places, rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(jnp.full((1,), 10.0, jnp.float32)))

    def frames(self, pictures: Float[Array, "B height width 3"]) -> Seen:
        """What frames show, for every place of 4x4 pixels."""
        x, deep = self._trunk(pictures)
        return Seen(_unit(self.embed(x)), self.heat(x)[..., 0] - 3.0, self.background(deep.mean(axis=(1, 2))))

    def references(self, pictures: Float[Array, "B height width 3"]) -> Float[Array, "B E"]:
        """The unit embedding of the one subject of each picture."""
        x, _ = self._trunk(pictures)
        x = x.reshape(len(x), -1, x.shape[-1])
        weights = jax.nn.softmax(self.pool(x), axis=1)
        return _unit(self.embed((x * weights).sum(axis=1)))

    def scale(self) -> Float[Array, ""]:
        """What inner products of embeddings are multiplied by to be logits."""
        return jnp.exp(self.log_scale[0])

    def _trunk(self, x: Float[Array, "B height width 3"]) -> tuple[Float[Array, "B h w C"], Float[Array, "B h2 w2 D"]]:
        x = self.down(jax.nn.gelu(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        deep = self.deeper(jax.nn.gelu(x))
        for block in self.deep_blocks:
            deep = block(deep)
        up = jnp.repeat(jnp.repeat(self.up(deep), 2, axis=1), 2, axis=2)
        x = self.last(x + up)
        return self.norm(x), deep


def _unit(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    return x / jnp.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)
