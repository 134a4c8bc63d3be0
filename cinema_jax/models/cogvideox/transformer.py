"""The CogVideoX transformer (arXiv 2408.06072) with CINEMA's references: an MM-DiT over one joint sequence.

The sequence is `[text | video | references | padding]`. Text and video share every weight of a block but the modulation
by time, which is chosen token by token. References are clean one-frame latents; they use what the video uses (patch
embedding, modulation) and stand after it in time, so that they add no parameter. The absent references of a sample come
last, with the padding, so that one length per sample masks both.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cinema_jax.models.activations import context_devices, named
from cinema_jax.models.attention import attention
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.embeddings import TokenLayout, index_vectors, rotary_positions, sincos_positions
from cinema_jax.models.layers import (
    TIMESTEPS,
    LayerNorm,
    Linear,
    TimestepEmbedding,
    rotate_pairs,
    scan_layers,
    stack_layers,
)
from cinema_jax.models.patches import PatchEmbed

_QK_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class _Context:
    """What all blocks share, besides their input: the position, time and validity of every token."""

    # Embedded time, after the SiLU; its second form, of time 0 and batch 1, is for references that have their own.
    time: Float[Array, "B E"]
    entity_time: Float[Array, "1 E"] | None
    is_text: Bool[Array, "S"]
    is_entity: Bool[Array, "S"]
    # Cosines and sines of the rotary angles.
    rotary: tuple[Float[Array, "S R"], Float[Array, "S R"]] | None
    lengths: Int[Array, "B"] | None


class ModulatedNorm(nnx.Module):
    """Layer norm, shifted and scaled by time, with a gate for what is computed from it; text and video have their own.

    The linear layer starts at 0 (adaLN-zero, arXiv 2212.09748): every block then starts as the identity.
    """

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.linear = Linear(config.time_embed_dim, 6 * config.width, kernel_init=zeros, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)

    def __call__(
        self, x: Float[Array, "B S D"], context: _Context
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
        """The modulated norm of `x`, and the gate."""
        pieces = jnp.split(self.linear(context.time)[:, None], 6, axis=-1)
        video, text, entity = pieces[:3], pieces[3:], None
        if context.entity_time is not None:
            entity = jnp.split(self.linear(context.entity_time)[:, None], 6, axis=-1)[:3]

        # Piece by piece: XLA then selects where a piece is used, and writes no array of (B, S, 3 D).
        def select(i: int) -> Float[Array, "B S D"]:
            piece = jnp.where(context.is_text[:, None], text[i], video[i])
            return piece if entity is None else jnp.where(context.is_entity[:, None], entity[i], piece)

        shift, scale, gate = map(select, range(3))
        return self.norm(x) * (1 + scale) + shift, gate


class Block(nnx.Module):
    """Joint self-attention, then a feed-forward network four times as wide, each behind a modulated norm and a gate."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        width, init = config.width, nnx.initializers.xavier_uniform()
        self.num_heads = config.num_attention_heads
        self.norm1 = ModulatedNorm(config, rngs=rngs)
        self.to_q = Linear(width, width, kernel_init=init, rngs=rngs)
        self.to_k = Linear(width, width, kernel_init=init, rngs=rngs)
        self.to_v = Linear(width, width, kernel_init=init, rngs=rngs)
        self.norm_q = LayerNorm(config.attention_head_dim, eps=_QK_NORM_EPS)
        self.norm_k = LayerNorm(config.attention_head_dim, eps=_QK_NORM_EPS)
        self.to_out = Linear(width, width, kernel_init=init, rngs=rngs)
        self.norm2 = ModulatedNorm(config, rngs=rngs)
        self.up = Linear(width, 4 * width, kernel_init=init, rngs=rngs)
        self.down = Linear(4 * width, width, kernel_init=init, rngs=rngs)

    def _attend(self, x: Float[Array, "B S D"], context: _Context) -> Float[Array, "B S D"]:
        q, k, v = (f(x).reshape(*x.shape[:2], self.num_heads, -1) for f in (self.to_q, self.to_k, self.to_v))
        q, k = self.norm_q(q), self.norm_k(k)
        if context.rotary is not None:
            q, k = rotate_pairs(q, *context.rotary), rotate_pairs(k, *context.rotary)
        q, k, v = (named(y.reshape(x.shape), name).reshape(y.shape) for y, name in ((q, "q"), (k, "k"), (v, "v")))
        out = attention(q, k, v, kv_lengths=context.lengths)
        return named(self.to_out(named(out.reshape(x.shape), "attended")), "projection")

    def __call__(self, x: Float[Array, "B S D"], context: _Context) -> Float[Array, "B S D"]:
        """All tokens after this block."""
        x = named(x, "carry")
        y, gate = self.norm1(x, context)
        x = x + gate * self._attend(y, context)
        y, gate = self.norm2(x, context)
        hidden = jax.nn.gelu(named(self.up(y), "hidden"), approximate=True)
        return x + gate * named(self.down(hidden), "projection")


class FinalNorm(nnx.Module):
    """Layer norm, shifted and scaled by time."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.linear = Linear(config.time_embed_dim, 2 * config.width, kernel_init=zeros, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)

    def __call__(self, x: Float[Array, "B S D"], time: Float[Array, "B E"]) -> Float[Array, "B S D"]:
        """`time` is the embedded time, after the SiLU."""
        shift, scale = jnp.split(self.linear(time)[:, None], 2, axis=-1)
        return self.norm(x) * (1 + scale) + shift


class CogVideoXTransformer(nnx.Module):
    """Noisy video latents, text tokens and clean references in, the velocity of the video out."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        width, init = config.width, nnx.initializers.xavier_uniform()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width, rngs=rngs)
        self.text_embed = Linear(config.text_embed_dim, width, kernel_init=init, rngs=rngs)
        self.time_embed = TimestepEmbedding(width, config.time_embed_dim, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm_final = LayerNorm(width, eps=config.norm_eps)
        self.norm_out = FinalNorm(config, rngs=rngs)
        # Starts at 0, like the modulations: an untrained network says velocity 0.
        patch = config.patch_size**2 * config.out_channels
        self.proj_out = Linear(width, patch, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(
        self,
        video: Float[Array, "B F H W C"],
        text: Float[Array, "B T Dt"],
        entities: Float[Array, "B K H2 W2 C"] | None,
        entity_lengths: Int[Array, "B"] | None,
        time: Float[Array, "B"],
    ) -> Float[Array, "B F H W C2"]:
        """The velocity of the video at a flow time.

        Args:
            video: noisy latents.
            text: text features; all positions are attended to.
            entities: clean latents of references, one frame each, those of a sample first; None or K = 0 for none.
            entity_lengths: how many references each sample has, in [0, K]. What stands behind them has no influence,
                not even as NaN. Unused without `entities`.
            time: flow time in [0, 1]; 1 is noise. The network reads it as timestep 1000 * time.

        Raises:
            ValueError: if a size does not fit the config.
        """
        layout = token_layout(
            self.config, video.shape[1:], text.shape[1], None if entities is None else entities.shape[1:]
        )
        count, lengths = layout.entity_grid[0], None
        if count:
            if entity_lengths is None:
                raise ValueError(f"entity_lengths is None; with {count} references it must count those of each sample")
            present = jnp.arange(count) < entity_lengths[:, None]
            # Masked keys alone would let a NaN through: 0 * NaN.
            entities = jnp.where(present[..., None, None, None], entities, 0)
            lengths = layout.text + layout.video + layout.entity * entity_lengths
        elif layout.padding:
            lengths = jnp.full(video.shape[0], layout.total - layout.padding)
        context = _Context(
            time=jax.nn.silu(self.time_embed(TIMESTEPS * time)),
            entity_time=self._time_zero() if count and self.config.entity_time == "zero" else None,
            is_text=layout.is_text(),
            is_entity=layout.is_entity(),
            rotary=self._rotary(layout),
            lengths=lengths,
        )
        x = self._embed(video, text, entities, layout)
        x = scan_layers(
            self.blocks,
            x,
            lambda block, x: block(x, context),
            remat=self.config.remat,
        )
        x = x[:, layout.text : layout.text + layout.video]
        x = self.proj_out(self.norm_out(self.norm_final(x), context.time))
        return self._unpatchify(x, layout)

    def _time_zero(self) -> Float[Array, "1 E"]:
        return jax.nn.silu(self.time_embed(jnp.zeros(1)))

    def _embed(self, video, text, entities, layout: TokenLayout) -> Float[Array, "B S D"]:
        config = self.config
        parts = [self.text_embed(text), self.patch_embed(video)]
        grids = [(layout.video_grid, 0)]
        if layout.entity_grid[0]:
            parts.append(self.patch_embed(entities))
            if config.entity_index == "vector":
                vectors = jnp.asarray(index_vectors(layout.entity_grid[0], config.width), parts[-1].dtype)
                parts[-1] += jnp.repeat(vectors, layout.entity, axis=0)
            grids.append((layout.entity_grid, layout.video_grid[0]))
        if not config.use_rotary_positional_embeddings:
            for i, (grid, first_frame) in enumerate(grids, start=1):
                positions = sincos_positions(
                    grid,
                    config.width,
                    first_frame=first_frame,
                    spatial_scale=config.spatial_interpolation_scale,
                    temporal_scale=config.temporal_interpolation_scale,
                )
                parts[i] = parts[i] + positions.astype(parts[i].dtype)
        x = jnp.concatenate(parts, axis=1)
        return jnp.pad(x, ((0, 0), (0, layout.padding), (0, 0)))

    def _rotary(self, layout: TokenLayout) -> tuple[Float[Array, "S R"], Float[Array, "S R"]] | None:
        """Text and padding stand at angle 0: they are not rotated."""
        config = self.config
        if not config.use_rotary_positional_embeddings:
            return None
        base = config.sample_height // config.patch_size, config.sample_width // config.patch_size
        kwargs = dict(size=config.attention_head_dim, base=base, theta=config.rope_theta)
        grids = [rotary_positions(layout.video_grid, first_frame=0, **kwargs)]
        if layout.entity_grid[0]:
            grids.append(rotary_positions(layout.entity_grid, first_frame=layout.video_grid[0], **kwargs))
        cos, sin = (jnp.concatenate(tables) for tables in zip(*grids, strict=True))
        rows = ((layout.text, layout.padding), (0, 0))
        return jnp.pad(cos, rows, constant_values=1), jnp.pad(sin, rows)

    def _unpatchify(self, x: Float[Array, "B S P"], layout: TokenLayout) -> Float[Array, "B F H W C"]:
        """The channels of a token are ordered channel, row, column."""
        p, (f, h, w) = self.config.patch_size, layout.video_grid
        x = x.reshape(-1, f, h, w, self.config.out_channels, p, p).transpose(0, 1, 2, 5, 3, 6, 4)
        return x.reshape(-1, f, h * p, w * p, self.config.out_channels)


def token_layout(
    config: CogVideoXConfig,
    video: tuple[int, int, int, int],
    text: int,
    entities: tuple[int, int, int, int] | None = None,
) -> TokenLayout:
    """The sequence for latents of shape `video` (F H W C), `text` tokens and `entities` (K H W C).

    Raises:
        ValueError: if a size does not fit the config.
    """
    p = config.patch_size
    if text != config.max_text_seq_length:
        raise ValueError(f"text has {text} tokens; max_text_seq_length is {config.max_text_seq_length}")
    for name, shape in (("video", video), ("entities", entities)):
        if shape is None:
            continue
        if shape[3] != config.in_channels:
            raise ValueError(f"{name} has {shape[3]} channels; in_channels is {config.in_channels}")
        if shape[1] % p or shape[2] % p:
            raise ValueError(f"{name} is {shape[1]} x {shape[2]} latents; patch_size {p} must divide both")
    frames, height, width, _ = video
    count, entity_height, entity_width, _ = entities or (0, 0, 0, 0)
    layout = TokenLayout(
        text=text,
        video_grid=(frames, height // p, width // p),
        entity_grid=(count, entity_height // p, entity_width // p),
        padding=0,
    )
    multiple = math.lcm(config.sequence_multiple, context_devices())
    return dataclasses.replace(layout, padding=-layout.total % multiple)
