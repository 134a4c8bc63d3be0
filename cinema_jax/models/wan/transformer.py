"""The Wan2.1 transformer (reference: `WanTransformer3DModel` of diffusers) with references beside its video.

Video tokens attend to each other and, by a second attention in each block, to the text; I2V networks also to the tokens
of a picture. References are clean one-frame latents. They use all that the video uses and stand after it in time, as
Phantom (arXiv 2502.11079) has them, or before it, as BindWeave (arXiv 2510.00438), so that they add no parameter. By
position alone: the sequence is always `[video | references | padding]`. The absent references of a sample come last,
with the padding, so that one length per sample masks both.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cinema_jax.models.activations import context_devices, named
from cinema_jax.models.attention import attention
from cinema_jax.models.layers import (
    TIMESTEPS,
    LayerNorm,
    Linear,
    RMSNorm,
    TimestepEmbedding,
    layer_norm,
    rotate_pairs,
    scan_layers,
    stack_layers,
)
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.models.patches import PatchEmbed, join_axes
from cinema_jax.models.wan.transformer_config import WanConfig

# Of the image tokens' embedding, which no config says.
_IMAGE_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class _Context:
    """What all blocks share, besides their input."""

    # Six vectors of the time, to which every block adds its own: shift, scale and gate of two layers.
    time: Float[Array, "B 6 D"]
    text: Float[Array, "B T D"]
    # How many text tokens each sample has; None: all of them.
    text_lengths: Int[Array, "B"] | None
    images: Float[Array, "B I D"] | None
    # Cosines and sines of the rotary angles.
    rotary: tuple[Float[Array, "S R"], Float[Array, "S R"]]
    lengths: Int[Array, "B"] | None


def _xavier(inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
    return Linear(inputs, outputs, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)


class SelfAttention(nnx.Module):
    """Attention of all tokens to all, with rotary positions; queries and keys are normalised over the whole width."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.num_heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (_xavier(width, width, rngs) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(width, eps=config.norm_eps) for _ in range(2))
        self.to_out = _xavier(width, width, rngs)

    def __call__(self, x: Float[Array, "B S D"], context: _Context) -> Float[Array, "B S D"]:
        """Without the residual."""
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(x)), self.to_v(x)
        q, k, v = (y.reshape(*x.shape[:2], self.num_heads, -1) for y in (q, k, v))
        q, k = rotate_pairs(q, *context.rotary), rotate_pairs(k, *context.rotary)
        q, k, v = (named(y.reshape(x.shape), name).reshape(y.shape) for y, name in ((q, "q"), (k, "k"), (v, "v")))
        out = attention(q, k, v, kv_lengths=context.lengths)
        return named(self.to_out(named(out.reshape(x.shape), "attended")), "projection")


class CrossAttention(nnx.Module):
    """Attention of all tokens to the text and, in I2V networks, to the tokens of a picture: the two are added."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.num_heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (_xavier(width, width, rngs) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(width, eps=config.norm_eps) for _ in range(2))
        self.to_out = _xavier(width, width, rngs)
        if config.image_embed_dim:
            self.image_k, self.image_v = (_xavier(width, width, rngs) for _ in range(2))
            self.norm_image_k = RMSNorm(width, eps=config.norm_eps)

    def __call__(self, x: Float[Array, "B S D"], context: _Context) -> Float[Array, "B S D"]:
        """Without the residual."""
        q = named(self.norm_q(self.to_q(x)), "q")
        out = self._attend(q, self.norm_k(self.to_k(context.text)), self.to_v(context.text), context.text_lengths)
        if context.images is not None:
            k, v = self.norm_image_k(self.image_k(context.images)), self.image_v(context.images)
            out = out + self._attend(q, k, v)
        return named(self.to_out(named(out, "attended")), "projection")

    def _attend(
        self,
        q: Float[Array, "B S D"],
        k: Float[Array, "B T D"],
        v: Float[Array, "B T D"],
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B S D"]:
        # Few tokens, of which every device that holds some of the video needs all.
        k, v = named(k, "told"), named(v, "told")
        heads = (y.reshape(*y.shape[:2], self.num_heads, -1) for y in (q, k, v))
        return attention(*heads, kv_lengths=lengths).reshape(q.shape)


class Block(nnx.Module):
    """Self-attention, cross-attention and a feed-forward network; the first and the last are modulated by time."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.norm_eps = config.norm_eps
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, width)) * width**-0.5)
        self.self_attention = SelfAttention(config, rngs=rngs)
        self.cross_norm = LayerNorm(width, eps=config.norm_eps)
        self.cross_attention = CrossAttention(config, rngs=rngs)
        self.up = _xavier(width, config.ffn_dim, rngs)
        self.down = _xavier(config.ffn_dim, width, rngs)

    def __call__(self, x: Float[Array, "B S D"], context: _Context) -> Float[Array, "B S D"]:
        """All tokens after this block."""
        x = named(x, "carry")
        pieces = at_least_fp32(self.modulation[...]) + at_least_fp32(context.time)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(pieces, 6, axis=1)
        y = _modulated(x, shift, scale, self.norm_eps)
        x = _gated(x, self.self_attention(y, context), gate)
        x = x + self.cross_attention(self.cross_norm(x), context)
        y = _modulated(x, mlp_shift, mlp_scale, self.norm_eps)
        hidden = jax.nn.gelu(named(self.up(y), "hidden"), approximate=True)
        return _gated(x, named(self.down(hidden), "projection"), mlp_gate)


def _modulated(
    x: Float[Array, "B S D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"], eps: float
) -> Float[Array, "B S D"]:
    """Layer norm without parameters, scaled and shifted in fp32."""
    return (layer_norm(at_least_fp32(x), None, None, eps) * (1 + scale) + shift).astype(x.dtype)


def _gated(x: Float[Array, "B S D"], y: Float[Array, "B S D"], gate: Float[Array, "B 1 D"]) -> Float[Array, "B S D"]:
    return (at_least_fp32(x) + y * gate).astype(x.dtype)


class TextEmbed(nnx.Module):
    """Text features as tokens of the network's width."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.linear_1 = Linear(inputs, width, kernel_init=init, rngs=rngs)
        self.linear_2 = Linear(width, width, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "B T Dt"]) -> Float[Array, "B T D"]:
        return self.linear_2(jax.nn.gelu(self.linear_1(x), approximate=True))


class ImageEmbed(nnx.Module):
    """Features of a picture as tokens of the network's width."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.norm_1 = LayerNorm(inputs, eps=_IMAGE_NORM_EPS)
        self.linear_1, self.linear_2 = _xavier(inputs, inputs, rngs), _xavier(inputs, width, rngs)
        self.norm_2 = LayerNorm(width, eps=_IMAGE_NORM_EPS)

    def __call__(self, x: Float[Array, "B I Di"]) -> Float[Array, "B I D"]:
        return self.norm_2(self.linear_2(jax.nn.gelu(self.linear_1(self.norm_1(x)), approximate=False)))


class WanTransformer(nnx.Module):
    """Noisy video latents, text tokens and clean references in, the velocity of the video out."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width, rngs=rngs)
        self.text_embed = TextEmbed(config.text_embed_dim, width, rngs=rngs)
        if config.image_embed_dim:
            self.image_embed = ImageEmbed(config.image_embed_dim, width, rngs=rngs)
        if config.mllm_embed_dim:
            self.text_projector = TextEmbed(config.mllm_embed_dim, config.text_embed_dim, rngs=rngs)
        self.time_embed = TimestepEmbedding(config.freq_dim, width, rngs=rngs)
        self.time_modulation = _xavier(width, 6 * width, rngs)
        self.blocks = stack_layers(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, width)) * width**-0.5)
        # Starts at 0: an untrained network says velocity 0.
        patch = config.patch_size**2 * config.out_channels
        self.proj_out = Linear(width, patch, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(
        self,
        video: Float[Array, "B F H W C"],
        text: Float[Array, "B T Dt"],
        entities: Float[Array, "B K H2 W2 C"] | None,
        entity_lengths: Int[Array, "B"] | None,
        time: Float[Array, "B"],
        images: Float[Array, "B I Di"] | None = None,
        states: Float[Array, "B L Dm"] | None = None,
        state_lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B F H W C2"]:
        """The velocity of the video at a flow time.

        Args:
            video: noisy latents; with more channels than go out, what is given beside the noise comes after them.
            text: text features, zeros behind a text. Those of fewer than `max_text_seq_length` tokens are filled up
                with zeros to as many; all positions are attended to.
            entities: clean latents of references, one frame each, those of a sample first; None or K = 0 for none.
            entity_lengths: how many references each sample has, in [0, K]. What stands behind them has no influence,
                not even as NaN. Unused without `entities`.
            time: flow time in [0, 1]; 1 is noise. The network reads it as timestep 1000 * time.
            images: features of pictures, for networks that read them.
            states: a multimodal LLM's, for networks that read them; `state_lengths` of them are those of each sample.

        Raises:
            ValueError: if a size does not fit the config.
        """
        self._check(video.shape, text.shape, entities, entity_lengths)
        self._check_given(images=images, states=states)
        p, batch = self.config.patch_size, video.shape[0]
        grids = [(video.shape[1], video.shape[2] // p, video.shape[3] // p)]
        tokens, lengths = [self.patch_embed(video)], None
        if entities is not None and entities.shape[1]:
            count, height, width = entities.shape[1:4]
            present = jnp.arange(count) < entity_lengths[:, None]
            # Masked keys alone would let a NaN through: 0 * NaN.
            entities = jnp.where(present[..., None, None, None], entities, 0)
            grids.append((count, height // p, width // p))
            tokens.append(self.patch_embed(entities))
            lengths = math.prod(grids[0]) + math.prod(grids[1][1:]) * entity_lengths
        total = sum(map(math.prod, grids))
        padding = -total % math.lcm(self.config.sequence_multiple, context_devices())
        if padding and lengths is None:
            lengths = jnp.full(batch, total)
        text, text_lengths = self._read(text, states, state_lengths)
        time_vector = self.time_embed(TIMESTEPS * time)
        context = _Context(
            time=self.time_modulation(jax.nn.silu(time_vector)).reshape(batch, 6, -1),
            text=text,
            text_lengths=text_lengths,
            images=None if images is None else self.image_embed(images),
            rotary=self._rotary(grids, padding),
            lengths=lengths,
        )
        x = jnp.pad(jnp.concatenate(tokens, axis=1), ((0, 0), (0, padding), (0, 0)))
        x = scan_layers(self.blocks, x, lambda block, x: block(x, context), remat=self.config.remat)
        pieces = at_least_fp32(self.modulation[...]) + at_least_fp32(time_vector)[:, None]
        x = _modulated(x[:, : math.prod(grids[0])], *jnp.split(pieces, 2, axis=1), self.config.norm_eps)
        return self._unpatchify(self.proj_out(x), grids[0])

    def _read(self, text, states, state_lengths) -> tuple[Float[Array, "B T D"], Int[Array, "B"] | None]:
        """The tokens of text and states, and how many of them each sample has; None: all."""
        text = jnp.pad(text, ((0, 0), (0, self.config.max_text_seq_length - text.shape[1]), (0, 0)))
        if states is None:
            return self.text_embed(text), None
        lengths = text.shape[1] + state_lengths
        # BindWeave has them before the text. Who attends to tokens sees no order, and so their padding is a suffix.
        return self.text_embed(jnp.concatenate([text, self.text_projector(states)], axis=1)), lengths

    def _check(self, video, text, entities, entity_lengths) -> None:
        config, p = self.config, self.config.patch_size
        for name, shape in (("video", video), ("entities", None if entities is None else entities.shape)):
            if shape is None:
                continue
            if shape[4] != config.in_channels:
                raise ValueError(f"{name} has {shape[4]} channels; in_channels is {config.in_channels}")
            if shape[2] % p or shape[3] % p:
                raise ValueError(f"{name} is {shape[2]} x {shape[3]} latents; patch_size {p} must divide both")
        if text[1] > config.max_text_seq_length:
            raise ValueError(f"text has {text[1]} tokens; max_text_seq_length is {config.max_text_seq_length}")
        if entities is not None and entities.shape[1] and entity_lengths is None:
            raise ValueError(
                f"entity_lengths is None; with {entities.shape[1]} references it must count those of each sample"
            )

    def _check_given(self, images, states) -> None:
        for name, value, field in (("images", images, "image_embed_dim"), ("states", states, "mllm_embed_dim")):
            if (value is None) == bool(wanted := getattr(self.config, field)):
                given = "missing" if value is None else "given"
                raise ValueError(f"{name} are {given}; {field} is {wanted}")

    def _rotary(
        self, grids: list[tuple[int, int, int]], padding: int
    ) -> tuple[Float[Array, "S R"], Float[Array, "S R"]]:
        """Cosines and sines of the tokens of video and references, and of padding, which is not rotated."""
        size, theta = self.config.attention_head_dim, self.config.rope_theta
        # Channels that turn with height and with width; the rest turns with time.
        side = 2 * (size // 6)

        def angles(positions: np.ndarray, channels: int) -> np.ndarray:
            return np.outer(positions, theta ** -(np.arange(0, channels, 2) / channels))

        counts, tables = [frames for frames, _, _ in grids], []
        after = self.config.reference_times == "after"
        for i, (frames, height, width) in enumerate(grids):
            first = sum(counts[:i] if after else counts[i + 1 :])
            axes = (
                angles(first + np.arange(frames), size - 2 * side),
                angles(np.arange(height), side),
                angles(np.arange(width), side),
            )
            # Of float64 angles, as in the original: those of late frames are large.
            tables.append([join_axes([f(x) for x in axes], order=(0, 1, 2)) for f in (np.cos, np.sin)])
        cos, sin = (jnp.concatenate(parts) for parts in zip(*tables, strict=True))
        rows = ((0, padding), (0, 0))
        return jnp.pad(cos, rows, constant_values=1), jnp.pad(sin, rows)

    def _unpatchify(self, x: Float[Array, "B S P"], grid: tuple[int, int, int]) -> Float[Array, "B F H W C"]:
        """The channels of a token are ordered row, column, channel."""
        p, (f, h, w) = self.config.patch_size, grid
        x = x.reshape(-1, f, h, w, p, p, self.config.out_channels).transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(-1, f, h * p, w * p, self.config.out_channels)
