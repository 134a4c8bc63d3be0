"""The causal video VAE of CogVideoX (arXiv 2408.06072; reference: `AutoencoderKLCogVideoX` in diffusers).

Its norms span all frames that they are given, so that results depend on where a clip is cut into chunks. The cuts are
the reference's: the encoder takes 8 frames at a time and the decoder 2 latent frames, the first chunk also the rest.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cinema_jax.models.chunks import in_chunks, latent_shape
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.models.tiling import Axis, Tiles, axes, in_tiles
from cinema_jax.models.wan.layers import CausalConv, Conv2d, conv2d, upsample_conv2d
from cinema_jax.models.wan.layers import Stream as CausalStream

# Frames, and latent frames, of a chunk.
ENCODED, DECODED = 8, 2
_EPS = 1e-6


class Stream(CausalStream):
    """The same, but a clip's first frame stands for those before it."""

    def past(self, x: Float[Array, "B F H W C"], count: int) -> Float[Array, "B count H W C"]:
        """The `count` frames before `x`. Keeps the last `count` up to the end of `x` for the next chunk."""
        past = jnp.repeat(x[:, :1], count, axis=1) if self.first else next(self._past)
        self.kept += (jnp.concatenate([past, x], axis=1)[:, -count:],)
        return past


class GroupNorm(nnx.Module):
    """Mean 0 and variance 1 in each group of channels over all positions of the chunk, in fp32."""

    def __init__(self, channels: int, groups: int, eps: float):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.groups, self.eps = groups, eps

    def __call__(self, x: Float[Array, "B F H W C"]) -> Float[Array, "B F H W C"]:
        y = at_least_fp32(x).reshape(*x.shape[:4], self.groups, -1)
        axes = (1, 2, 3, 5)
        y = y - y.mean(axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + self.eps)
        return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


class SpatialNorm(nnx.Module):
    """A group norm, scaled and shifted by the latents at each place (reference: `CogVideoXSpatialNorm3D`)."""

    def __init__(self, channels: int, latents: int, groups: int, *, rngs: nnx.Rngs):
        self.norm_layer = GroupNorm(channels, groups, _EPS)
        self.conv_y = nnx.Linear(latents, channels, rngs=rngs)
        self.conv_b = nnx.Linear(latents, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B F H W C"], z: Float[Array, "B F2 H2 W2 Z"]) -> Float[Array, "B F H W C"]:
        # Where each position looks for its latent does not depend on what is computed from it.
        return self.norm_layer(x) * _nearest(self.conv_y(z), x) + _nearest(self.conv_b(z), x)


def _nearest(z: Float[Array, "B F2 H2 W2 C"], x: Float[Array, "B F H W C"]) -> Float[Array, "B F H W C"]:
    """`z` at the size of `x`, by its nearest positions; of an odd number of frames, the first stands by itself."""
    (_, _, height, width, _), (frames, rows, columns) = z.shape, x.shape[1:4]
    if frames > 1 and frames % 2:
        times = np.concatenate([[0], 1 + _positions(z.shape[1] - 1, frames - 1)])
    else:
        times = _positions(z.shape[1], frames)
    return z[:, times][:, :, _positions(height, rows)][:, :, :, _positions(width, columns)]


def _positions(size: int, larger: int) -> np.ndarray:
    return np.arange(larger) * size // larger


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and convolution, beside a shortcut; in the decoder (`latents`) norms see the latents."""

    def __init__(self, inputs: int, outputs: int, config: CogVideoXVAEConfig, latents: bool, *, rngs: nnx.Rngs):
        def norm(channels):
            if latents:
                return SpatialNorm(channels, config.latent_channels, config.norm_num_groups, rngs=rngs)
            return GroupNorm(channels, config.norm_num_groups, config.norm_eps)

        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1 = CausalConv(inputs, outputs, rngs=rngs)
        self.conv2 = CausalConv(outputs, outputs, rngs=rngs)
        self.conv_shortcut = nnx.Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream, *z: Array) -> Float[Array, "B F H W C2"]:
        y = self.conv1(jax.nn.silu(self.norm1(x, *z)), stream)
        y = self.conv2(jax.nn.silu(self.norm2(y, *z)), stream)
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def _halve_time(x: Float[Array, "B F H W C"]) -> Float[Array, "B F2 H W C"]:
    """Means of two frames each; of an odd number, the first stays."""
    odd = x.shape[1] % 2
    pairs = x[:, odd:].reshape(x.shape[0], -1, 2, *x.shape[2:]).mean(2)
    return jnp.concatenate([x[:, :odd], pairs], axis=1)


def _double_time(x: Float[Array, "B F H W C"]) -> Float[Array, "B F2 H W C"]:
    """Every frame twice; of an odd number, the first once."""
    odd = x.shape[1] % 2
    return jnp.concatenate([x[:, :odd], jnp.repeat(x[:, odd:], 2, axis=1)], axis=1)


class Stage(nnx.Module):
    """Residual blocks at one resolution, and a step to the next one: down, up or none (None)."""

    def __init__(self, inputs, outputs, config, *, latents: bool, step: str | None, time: bool, rngs: nnx.Rngs):
        sizes = [inputs] + [outputs] * (config.layers_per_block - (0 if latents else 1))
        self.resnets = nnx.List([ResidualBlock(size, outputs, config, latents, rngs=rngs) for size in sizes])
        self.downsampler = Conv2d(outputs, outputs, rngs=rngs) if step == "down" else None
        self.upsampler = Conv2d(outputs, outputs, rngs=rngs) if step == "up" else None
        self.time = time

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream, *z: Array) -> Float[Array, "B F2 H2 W2 C2"]:
        for block in self.resnets:
            x = block(x, stream, *z)
        if (down := self.downsampler) is not None:
            x = _halve_time(x) if self.time else x
            return conv2d(x, down.kernel[...], ((0, 1), (0, 1)), stride=2) + down.bias[...]
        if (up := self.upsampler) is not None:
            x = _double_time(x) if self.time else x
            return upsample_conv2d(x, up.kernel[...]) + up.bias[...]
        return x


def _stages(sizes: tuple[int, ...], config: CogVideoXVAEConfig, step: str, rngs: nnx.Rngs) -> nnx.List:
    """Those of the encoder ("down") or of the decoder ("up"); the last one changes no resolution."""
    levels, last = int(math.log2(config.temporal_compression_ratio)), len(sizes) - 1
    return nnx.List(
        [
            Stage(
                sizes[max(i - 1, 0)],
                sizes[i],
                config,
                latents=step == "up",
                step=None if i == last else step,
                time=i < levels,
                rngs=rngs,
            )
            for i in range(len(sizes))
        ]
    )


class MidBlock(nnx.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, config: CogVideoXVAEConfig, latents: bool, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResidualBlock(channels, channels, config, latents, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream, *z: Array) -> Float[Array, "B F H W C"]:
        for block in self.resnets:
            x = block(x, stream, *z)
        return x


class Encoder(nnx.Module):
    """Pixels to the posterior's moments (reference: `CogVideoXEncoder3D`)."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        sizes = config.block_out_channels
        self.conv_in = CausalConv(3, sizes[0], rngs=rngs)
        self.down_blocks = _stages(sizes, config, "down", rngs)
        self.mid_block = MidBlock(sizes[-1], config, False, rngs=rngs)
        self.norm_out = GroupNorm(sizes[-1], config.norm_num_groups, _EPS)
        self.conv_out = CausalConv(sizes[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B frames height width 3"], stream: Stream) -> Float[Array, "B F H W C2"]:
        x = self.conv_in(x, stream)
        for block in self.down_blocks:
            x = block(x, stream)
        x = self.mid_block(x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), stream)


class Decoder(nnx.Module):
    """Latents to pixels (reference: `CogVideoXDecoder3D`)."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        sizes = config.block_out_channels[::-1]
        self.conv_in = CausalConv(config.latent_channels, sizes[0], rngs=rngs)
        self.mid_block = MidBlock(sizes[0], config, True, rngs=rngs)
        self.up_blocks = _stages(sizes, config, "up", rngs)
        self.norm_out = SpatialNorm(sizes[-1], config.latent_channels, config.norm_num_groups, rngs=rngs)
        self.conv_out = CausalConv(sizes[-1], 3, rngs=rngs)

    def __call__(self, z: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B frames height width 3"]:
        x = self.mid_block(self.conv_in(z, stream), stream, z)
        for block in self.up_blocks:
            x = block(x, stream, z)
        return self.conv_out(jax.nn.silu(self.norm_out(x, z)), stream)


class CogVideoXVAE(nnx.Module):
    """Video in [-1, 1] to latents and back, chunk by chunk as diffusers cuts it."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The latents' (F, H, W, C) for a clip of this size.

        Raises:
            InputError: unless frames are 1, or a multiple of 8 and 1 more, and height and width are multiples of 8 (in
                the released VAE). Other numbers of frames become an even number of latents, which decode to more frames
                than went in.
        """
        why = f", so that the latent frames are odd: {frames} would not come back as {frames}"
        return latent_shape(self.config, frames, height, width, why)

    def encode(self, video: Float[Array, "B frames height width 3"]) -> Float[Array, "B F H W C"]:
        """The posterior's mode, scaled. Raises InputError as `latent_shape` does."""
        self.latent_shape(*video.shape[1:4])
        return self.encode_moments(video)[0] * self.config.scaling_factor

    def encode_tiled(
        self, video: Float[Array, "B frames height width 3"], tiles: Tiles | None = None
    ) -> Float[Array, "B F H W C"]:
        """`encode` in tiles, in less memory but not quite the same; frames that fit in one are encoded whole.

        `tiles` None: tiles of one size, at most half the config's sample size. Raises InputError as `latent_shape`
        does, or if tiles do not fit.
        """
        _, height, width, _ = self.latent_shape(*video.shape[1:4])
        (rows, _), (columns, _) = self._tile_axes(tiles, height, width)
        if video.shape[2] <= rows.size and video.shape[3] <= columns.size:
            return self.encode(video)
        moments = in_tiles(self._encode, video, rows, columns)
        return jnp.split(moments, 2, axis=-1)[0] * self.config.scaling_factor

    def decode_tiled(
        self, latents: Float[Array, "B F H W C"], tiles: Tiles | None = None
    ) -> Float[Array, "B frames height width 3"]:
        """`decode` in tiles, in less memory but not quite the same; latents that fit in one are decoded whole.

        `tiles` None: tiles of one size, at most half the config's sample size. Raises InputError if tiles do not fit.
        """
        (_, rows), (_, columns) = self._tile_axes(tiles, *latents.shape[2:4])
        if latents.shape[2] <= rows.size and latents.shape[3] <= columns.size:
            return self.decode(latents)
        return jnp.clip(in_tiles(self.decode_raw, latents / self.config.scaling_factor, rows, columns), -1, 1)

    def encode_moments(
        self, video: Float[Array, "B frames height width 3"]
    ) -> tuple[Float[Array, "B F H W C"], Float[Array, "B F H W C"]]:
        """Mean and log variance (in [-30, 20]) of the posterior, not scaled, of any number of frames."""
        mean, log_variance = jnp.split(self._encode(video), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def _encode(self, video: Float[Array, "B frames height width 3"]) -> Float[Array, "B F H W C2"]:
        return _run(self.encoder, video, ENCODED, max(1, ENCODED // self.config.temporal_compression))

    def _tile_axes(self, tiles: Tiles | None, height: int, width: int) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
        """Of pixels and of latents, along height and along width, for so many latents."""
        most = Tiles(self.config.sample_height // 2, self.config.sample_width // 2, 1 / 6, 1 / 5)
        return axes(tiles, most, height, width, self.config.spatial_compression)

    def decode(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B frames height width 3"]:
        """The video of scaled latents, clipped to [-1, 1]."""
        return jnp.clip(self.decode_raw(latents / self.config.scaling_factor), -1, 1)

    def decode_raw(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B frames height width 3"]:
        """The video of latents that are not scaled, not clipped."""
        return _run(self.decoder, latents, DECODED, DECODED * self.config.temporal_compression)


def _run(
    network: Encoder | Decoder, x: Float[Array, "B F H W C"], size: int, coded: int
) -> Float[Array, "B F2 H2 W2 C2"]:
    """Chunks of `size` frames, which become `coded` ones; what is left over goes with the first."""
    first = x.shape[1] % size + (size if x.shape[1] >= size else 0)
    return in_chunks(network, x, stream=Stream, first=first, size=size, coded=coded)
