"""AlignerNet: the hidden states of the multimodal LLM, read into the T5 feature space (CINEMA, arXiv 2503.10391).

A perceiver resampler: learned latents attend to themselves and to the states. The paper gives its sizes (6 layers,
width 768, 8 heads, 226 latents) and loss terms, but no module: what it leaves open follows ELLA's resampler
(arXiv 2403.05135).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.attention import attention
from cinema_jax.models.layers import LayerNorm, Linear, scan_layers, stack_layers
from cinema_jax.models.numerics import at_least_fp32

_EPS = 1e-5


class AlignerLayer(nnx.Module):
    """`z += MHA(q=LN(z), kv=[LN(z); LN(x)])`, then `z += MLP(LN(z))` with a 4x squared-ReLU network."""

    def __init__(self, config: AlignerConfig, *, rngs: nnx.Rngs):
        width = config.width
        # Residual outputs start small, so that the sum of all layers starts at the size of one.
        small = nnx.initializers.variance_scaling(0.5 / config.num_layers, "fan_in", "truncated_normal")
        self.latents_norm = LayerNorm(width, eps=_EPS)
        self.states_norm = LayerNorm(width, eps=_EPS)
        self.q = Linear(width, width, rngs=rngs)
        self.k = Linear(width, width, rngs=rngs)
        self.v = Linear(width, width, rngs=rngs)
        self.o = Linear(width, width, kernel_init=small, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps=_EPS)
        self.up = Linear(width, 4 * width, rngs=rngs)
        self.down = Linear(4 * width, width, kernel_init=small, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(
        self, z: Float[Array, "B T D"], x: Float[Array, "B L D"], lengths: Int[Array, "B"] | None
    ) -> Float[Array, "B T D"]:
        """One layer: latents `z` read themselves and the first `lengths` of the states `x`."""
        z_normed = self.latents_norm(z)
        # States come last: their padding is then a suffix of the keys, and one length masks it on any backend.
        source = jnp.concatenate([z_normed, self.states_norm(x)], axis=1)
        q, k, v = (
            project(y).reshape(*y.shape[:2], self.num_heads, -1)
            for project, y in ((self.q, z_normed), (self.k, source), (self.v, source))
        )
        y = attention(q, k, v, kv_lengths=None if lengths is None else lengths + z.shape[1])
        z = z + self.o(y.reshape(*y.shape[:2], -1))
        return z + self.down(jnp.square(jax.nn.relu(self.up(self.mlp_norm(z)))))


class AlignerNet(nnx.Module):
    """MLLM states in, T5-like features out."""

    def __init__(self, config: AlignerConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (c.num_latents, c.width)) * c.width**-0.5)
        self.input_projection = Linear(c.input_dim, c.width, rngs=rngs)
        self.layers = stack_layers(lambda rngs: AlignerLayer(c, rngs=rngs), c.num_layers, rngs)
        self.output_projection = Linear(c.width, c.output_dim, rngs=rngs)
        # T5 features are a normalised vector times a learned scale per channel, and so is what this norm gives.
        self.output_norm = LayerNorm(c.output_dim, eps=_EPS)
        if c.gated:
            self.gate = Linear(c.width, 1, rngs=rngs)

    def __call__(
        self, states: Float[Array, "B L D"], lengths: Int[Array, "B"] | None = None, *, remat: str = "none"
    ) -> Float[Array, "B T D2"]:
        """Aligned features, always `num_latents` of them.

        Args:
            states: the MLLM's hidden states, padded at the end; what the padding holds has no influence.
            lengths: number of real states per sample; None means all of them.
            remat: what the backward pass finds of each layer; see `scan_layers`.
        """
        x = self.input_projection(states)
        z = jnp.broadcast_to(self.latents[...].astype(x.dtype), (x.shape[0], *self.latents.shape))
        z = scan_layers(self.layers, z, lambda layer, z: layer(z, x, lengths), remat=remat)
        y = self.output_norm(self.output_projection(z))
        return y * jax.nn.sigmoid(at_least_fp32(self.gate(z))).astype(y.dtype) if self.config.gated else y


def alignment_loss(
    predicted: Float[Array, "B T D"],
    target: Float[Array, "B T D"],
    lengths: Int[Array, "B"],
    *,
    mse_weight: float = 1.0,
    cosine_weight: float = 1.0,
    balanced: bool = False,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`mse_weight * MSE + cosine_weight * (1 - cosine)`, averaged over all positions: the paper's two terms.

    Padding positions count too, because the transformer reads them (CogVideoX runs T5 without a mask). They are most of
    the positions: 82 % of the loss of a caption of 40 tokens in 226, unless it is `balanced`.

    Args:
        predicted: the aligner's features.
        target: T5's features of the caption.
        lengths: number of real tokens of the caption; unless `balanced`, it only parts the metrics.
        mse_weight: weight of the squared error. The paper does not give the weights.
        cosine_weight: weight of the cosine term, which a target of zeros does not have.
        balanced: the real positions of each caption have half of its loss, and its padding the other half.

    Returns:
        The loss and `mse`, `cosine`, `cosine_real`, `cosine_padding`, all fp32. The last two are means over the real
        and the padding positions of all captions together, NaN where there is none of that kind.
    """
    predicted, target = at_least_fp32(predicted), at_least_fp32(target)
    distances = jnp.mean(jnp.square(predicted - target), axis=-1)
    # The floor keeps a zero vector's gradient finite.
    squares = jnp.sum(jnp.square(predicted), -1) * jnp.sum(jnp.square(target), -1)
    cosines = jnp.sum(predicted * target, -1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
    real = jnp.arange(cosines.shape[1]) < lengths[:, None]
    metrics = {
        "mse": jnp.mean(distances),
        "cosine": jnp.mean(cosines),
        "cosine_real": jnp.mean(cosines, where=real),
        "cosine_padding": jnp.mean(cosines, where=~real),
    }
    # Zeros, as UMT5 has behind a text, point nowhere.
    turned = jnp.where(jnp.any(target != 0, axis=-1), 1 - cosines, 0)
    errors = mse_weight * distances + cosine_weight * turned
    return jnp.mean(errors * _halves(real) if balanced else errors), metrics


def _halves(real: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Weights of mean 1, of which the real and the other positions of a sample have half each, or one kind all."""
    counts = real.sum(axis=1, keepdims=True), (~real).sum(axis=1, keepdims=True)
    kinds = sum((count > 0).astype(float) for count in counts)
    shares = [real.shape[1] / (kinds * jnp.maximum(count, 1)) for count in counts]
    return jnp.where(real, *shares)
