"""The causal video VAE of Wan2.1 (reference: `AutoencoderKLWan` in diffusers).

The first frame of a clip is coded by itself and every four after it together, so an image is a clip of one frame, and
no frame depends on a later one.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cinema_jax.models.attention import attention
from cinema_jax.models.chunks import in_chunks, latent_shape
from cinema_jax.models.tiling import Tiles, axes, in_tiles
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.layers import CausalConv, ChannelNorm, Downsample, Stream, Upsample

# The largest tile, and how much of it overlaps with the next one: as diffusers cuts frames unless told otherwise.
TILES = Tiles(height=256, width=256, overlap_height=0.25, overlap_width=0.25)


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and convolution, beside a shortcut (reference: `WanResidualBlock`)."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(in_channels)
        self.conv1 = CausalConv(in_channels, out_channels, rngs=rngs)
        self.norm2 = ChannelNorm(out_channels)
        self.conv2 = CausalConv(out_channels, out_channels, rngs=rngs)
        self.conv_shortcut = nnx.Linear(in_channels, out_channels, rngs=rngs) if in_channels != out_channels else None

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F H W C2"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)), stream)
        y = self.conv2(jax.nn.silu(self.norm2(y)), stream)
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nnx.Module):
    """Attention with one head over the positions of each frame (reference: `WanAttentionBlock`)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(channels)
        self.to_qkv = nnx.Linear(channels, 3 * channels, rngs=rngs)
        self.proj = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F H W C"]:
        del stream  # frames do not see each other here
        batch, frames, height, width, channels = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(batch * frames, height * width, 3, 1, channels)
        return x + self.proj(attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape))


class MidBlock(nnx.Module):
    """Residual block, attention, residual block (reference: `WanMidBlock`)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResidualBlock(channels, channels, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List([AttentionBlock(channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F H W C"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, stream), stream), stream)


class UpBlock(nnx.Module):
    """A stage of the decoder (reference: `WanUpBlock`); `temporal` None: the last one, without upsampling."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, temporal: bool | None, *, rngs: nnx.Rngs):
        sizes = [in_channels] + [out_channels] * (blocks - 1)
        self.resnets = nnx.List([ResidualBlock(size, out_channels, rngs=rngs) for size in sizes])
        self.upsampler = None if temporal is None else Upsample(out_channels, temporal, rngs=rngs)

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F2 H2 W2 C2"]:
        for block in self.resnets:
            x = block(x, stream)
        return x if self.upsampler is None else self.upsampler(x, stream)


class Encoder(nnx.Module):
    """Pixels to what the posterior's moments are computed from (reference: `WanEncoder3d`)."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        channels, scale, blocks = config.base_dim, 1.0, []
        self.conv_in = CausalConv(3, channels, rngs=rngs)
        for stage, multiple in enumerate(config.dim_mult):
            for _ in range(config.num_res_blocks):
                blocks.append(ResidualBlock(channels, config.base_dim * multiple, rngs=rngs))
                channels = config.base_dim * multiple
                if scale in config.attn_scales:
                    blocks.append(AttentionBlock(channels, rngs=rngs))
            if stage < len(config.temporal_downsample):
                blocks.append(Downsample(channels, config.temporal_downsample[stage], rngs=rngs))
                scale /= 2
        self.down_blocks = nnx.List(blocks)
        self.mid_block = MidBlock(channels, rngs=rngs)
        self.norm_out = ChannelNorm(channels)
        self.conv_out = CausalConv(channels, 2 * config.z_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B frames height width 3"], stream: Stream) -> Float[Array, "B F H W C2"]:
        x = self.conv_in(x, stream)
        for block in self.down_blocks:
            x = block(x, stream)
        x = self.mid_block(x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), stream)


class Decoder(nnx.Module):
    """Latents to pixels (reference: `WanDecoder3d`)."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        base = config.base_dim if config.decoder_base_dim is None else config.decoder_base_dim
        channels = base * config.dim_mult[-1]
        self.conv_in = CausalConv(config.z_dim, channels, rngs=rngs)
        self.mid_block = MidBlock(channels, rngs=rngs)
        blocks = []
        for multiple, temporal in zip(config.dim_mult[::-1], (*config.temporal_downsample[::-1], None), strict=True):
            blocks.append(UpBlock(channels, base * multiple, config.num_res_blocks + 1, temporal, rngs=rngs))
            channels = base * multiple // 2  # the upsampling halves them
        self.up_blocks = nnx.List(blocks)
        self.norm_out = ChannelNorm(base * config.dim_mult[0])
        self.conv_out = CausalConv(base * config.dim_mult[0], 3, rngs=rngs)

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B frames height width 3"]:
        x = self.mid_block(self.conv_in(x, stream), stream)
        for block in self.up_blocks:
            x = block(x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), stream)


class WanVAE(nnx.Module):
    """Video in [-1, 1] to latents and back.

    Latents have zero mean and unit variance in each channel, by the statistics in the config. `encode` and `decode`
    work on a latent frame at a time, so that their peak memory grows by what they return alone. `encode_moments` and
    `decode_raw` give the same of a whole clip at once, which is what gradients want.
    """

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = nnx.Linear(2 * config.z_dim, 2 * config.z_dim, rngs=rngs)
        self.post_quant_conv = nnx.Linear(config.z_dim, config.z_dim, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The latents' (F, H, W, C) for a clip of this size.

        Raises:
            InputError: unless frames = 4k + 1 and height and width are multiples of 8 (in the released VAE).
        """
        return latent_shape(self.config, frames, height, width)

    def encode(self, video: Float[Array, "B frames height width 3"]) -> Float[Array, "B F H W C"]:
        """The posterior's mode, normalised. Raises InputError as `latent_shape` does."""
        self.latent_shape(*video.shape[1:4])
        return self.normalise(
            self._moments(
                in_chunks(self.encoder, video, stream=Stream, first=1, size=self.config.temporal_compression, coded=1)
            )[0]
        )

    def decode(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B frames height width 3"]:
        """The video of normalised latents, clipped to [-1, 1]."""
        return jnp.clip(self._in_chunks(self.denormalise(latents)), -1, 1)

    def decode_tiled(
        self, latents: Float[Array, "B F H W C"], tiles: Tiles | None = None
    ) -> Float[Array, "B frames height width 3"]:
        """`decode` in tiles, in less memory but not quite the same; latents that fit in one are decoded whole.

        `tiles` None: tiles of one size, at most 256 pixels high and wide. Raises InputError if tiles do not fit.
        """
        (_, rows), (_, columns) = axes(tiles, TILES, *latents.shape[2:4], self.config.spatial_compression)
        if latents.shape[2] <= rows.size and latents.shape[3] <= columns.size:
            return self.decode(latents)
        return jnp.clip(in_tiles(self._in_chunks, self.denormalise(latents), rows, columns), -1, 1)

    def _in_chunks(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B frames height width 3"]:
        """As `decode_raw`, a latent frame at a time."""
        latents, coded = self.post_quant_conv(latents), self.config.temporal_compression
        return in_chunks(self.decoder, latents, stream=Stream, first=1, size=1, coded=coded)

    def encode_moments(
        self, video: Float[Array, "B frames height width 3"]
    ) -> tuple[Float[Array, "B F H W C"], Float[Array, "B F H W C"]]:
        """Mean and log variance (in [-30, 20]) of the posterior, not normalised, at once: for training."""
        self.latent_shape(*video.shape[1:4])
        return self._moments(self.encoder(video, Stream()))

    def decode_raw(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B frames height width 3"]:
        """The video of latents that are not normalised, not clipped, at once: for training."""
        return self.decoder(self.post_quant_conv(latents), Stream())

    def normalise(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B F H W C"]:
        """Zero mean and unit variance in each channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalise(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B F H W C"]:
        """The inverse of `normalise`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, latents: Float[Array, "B F H W C"]) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
        return jnp.array(self.config.latents_mean, latents.dtype), jnp.array(self.config.latents_std, latents.dtype)

    def _moments(self, x: Float[Array, "B F H W C2"]) -> tuple[Float[Array, "B F H W C"], Float[Array, "B F H W C"]]:
        mean, log_variance = jnp.split(self.quant_conv(x), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)
