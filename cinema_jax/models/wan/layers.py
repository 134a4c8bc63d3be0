"""Causal convolutions on video, channels last, whole clips or chunk by chunk.

A causal layer sees the frames before its own. Those are zero before a clip begins, and for a later chunk they are what
the layer kept of the chunk before it: `Stream` hands them round.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from cinema_jax.models.layers import platform
from cinema_jax.models.numerics import at_least_fp32

_KERNEL_INIT = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_IMAGE = ("NHWC", "HWIO", "NHWC")
_VIDEO = ("NDHWC", "DHWIO", "NDHWC")
_SAME = ((1, 1), (1, 1))

# A nearest-neighbour upsampling by 2 and a 3-tap kernel after it are two 2-tap kernels on the small input, one for the
# even outputs and one for the odd ones: [parity, small tap, tap].
_UPSAMPLED_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


class Stream:
    """The frames before the current chunk, for every causal layer in the order in which they run.

    `first` tells whether the clip begins with this chunk; `kept` collects what the next chunk's stream needs.
    """

    def __init__(self, past: Sequence[Float[Array, "B frames H W C"]] | None = None):
        self.first = past is None
        self.kept: tuple[Array, ...] = ()
        self._past = iter(past or ())

    def past(self, x: Float[Array, "B F H W C"], count: int) -> Float[Array, "B count H W C"] | None:
        """The `count` frames before `x`, or None where all are zero because the clip begins with `x`.

        Keeps the last `count` frames up to the end of `x` for the next chunk.
        """
        past = None if self.first else next(self._past)
        missing = count - x.shape[1]
        if missing <= 0:
            kept = x[:, x.shape[1] - count :]
        elif past is None:
            kept = _zeros_before(x, missing)
        else:
            kept = jnp.concatenate([past[:, count - missing :], x], axis=1)
        self.kept += (kept,)
        return past


def _conv2d(x, kernel, padding, stride):
    frames = x.reshape(-1, *x.shape[-3:])
    y = lax.conv_general_dilated(frames, kernel, (stride, stride), padding, dimension_numbers=_IMAGE)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(
    x: Float[Array, "*N H W C"],
    kernel: Float[Array, "rows columns C C2"],
    padding: tuple[tuple[int, int], tuple[int, int]] = _SAME,
    stride: int = 1,
) -> Float[Array, "*N H2 W2 C2"]:
    """A convolution of every frame by itself, zero-padded by `padding` before and after height and width."""
    return _conv2d(x, kernel, padding, stride)


def _conv2d_forward(x, kernel, padding, stride):
    return conv2d(x, kernel, padding, stride), (x, kernel)


def _conv2d_backward(padding, stride, saved, dy):
    x, kernel = saved
    copy = _materialised(x)
    (dx,) = jax.linear_transpose(lambda x: _conv2d(x, kernel, padding, stride), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _conv2d(copy, kernel, padding, stride), kernel)(dy)
    return dx, dkernel


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _materialised(x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
    """`x`; on a CPU as an array of its own, with which its computation is not merged any further.

    The gradient of a kernel reads `x` transposed. XLA's CPU compiler would merge that with the norm and activation that
    make `x`, and compute them in an order that takes several times as long as the convolution. A matrix product keeps
    it from that; `optimization_barrier` is removed too early to.
    """
    return x @ jnp.eye(x.shape[-1], dtype=x.dtype) if platform() == "cpu" else x


def causal_conv3d_native(
    x: Float[Array, "B F H W C"], kernel: Float[Array, "taps rows columns C C2"], past: int
) -> Float[Array, "B F2 H W C2"]:
    """A convolution over time and space; the first `past` frames of `x` only serve as context, zeros stand for more."""
    padding = ((kernel.shape[0] - 1 - past, 0), *_SAME)
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=_VIDEO)


def causal_conv3d_by_taps(
    x: Float[Array, "B F H W C"], kernel: Float[Array, "taps rows columns C C2"], past: int
) -> Float[Array, "B F2 H W C2"]:
    """`causal_conv3d_native` as 2D convolutions, one for each temporal tap, shifted in time and added.

    On a CPU this is up to several times faster than XLA's 3D convolution.
    """
    frames, y = x.shape[1] - past, []
    for i, tap in enumerate(kernel):
        # How much later an output is than the frame that this tap sees; negative where that frame is context.
        delay = kernel.shape[0] - 1 - past - i
        seen = conv2d(x[:, max(-delay, 0) : max(frames - delay, 0)], tap)
        y.append(_zeros_before(seen, frames - seen.shape[1]))
    return sum(y)


def _zeros_before(x: Float[Array, "B F H W C"], count: int) -> Float[Array, "B F2 H W C"]:
    return jnp.pad(x, ((0, 0), (count, 0), (0, 0), (0, 0), (0, 0)))


def causal_conv3d(
    x: Float[Array, "B F H W C"],
    kernel: Float[Array, "taps rows columns C C2"],
    past: Float[Array, "B past H W C"] | None = None,
) -> Float[Array, "B F H W C2"]:
    """A convolution over space and the last `taps` frames.

    `past` are the `taps - 1` frames before `x`; None stands for zeros. Of the kernel, an image needs only the last tap.
    """
    if past is None and x.shape[1] == 1:
        return conv2d(x, kernel[-1])
    if past is not None:
        x = jnp.concatenate([past, x], axis=1)
    conv = causal_conv3d_by_taps if platform() == "cpu" else causal_conv3d_native
    return conv(x, kernel, 0 if past is None else past.shape[1])


class CausalConv(nnx.Module):
    """A 3x3x3 convolution, causal in time (reference: `WanCausalConv3d`)."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_KERNEL_INIT(rngs.params(), (3, 3, 3, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F H W C2"]:
        return causal_conv3d(x, self.kernel[...], stream.past(x, 2)) + self.bias[...]


class TimeConv(nnx.Module):
    """A convolution over three frames, without padding."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_KERNEL_INIT(rngs.params(), (3, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.stride = stride

    def __call__(self, x: Float[Array, "B F H W C"]) -> Float[Array, "B F2 H W C2"]:
        kernel, end = self.kernel[...], x.shape[1] - 2
        return sum(x[:, i : end + i : self.stride] @ kernel[i] for i in range(3)) + self.bias[...]


class Conv2d(nnx.Module):
    """The parameters of a 3x3 convolution of frames."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_KERNEL_INIT(rngs.params(), (3, 3, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))


class Downsample(nnx.Module):
    """Half the height and width and, if `temporal`, of 1 + 2k frames 1 + k (reference: `WanResample`)."""

    def __init__(self, channels: int, temporal: bool, *, rngs: nnx.Rngs):
        self.resample = Conv2d(channels, channels, rngs=rngs)
        self.time_conv = TimeConv(channels, channels, 2, rngs=rngs) if temporal else None

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F2 H2 W2 C"]:
        x = conv2d(x, self.resample.kernel[...], ((0, 1), (0, 1)), stride=2) + self.resample.bias[...]
        if self.time_conv is None:
            return x
        past = stream.past(x, 1)
        if past is not None:
            return self.time_conv(jnp.concatenate([past, x], axis=1))
        # A clip's first frame stands for itself, so that images are clips of one frame.
        return jnp.concatenate([x[:, :1], self.time_conv(x)], axis=1) if x.shape[1] > 1 else x


class Upsample(nnx.Module):
    """Twice the height and width, half the channels and, if `temporal`, of 1 + k frames 1 + 2k (`WanResample`)."""

    def __init__(self, channels: int, temporal: bool, *, rngs: nnx.Rngs):
        self.resample = Conv2d(channels, channels // 2, rngs=rngs)
        self.time_conv = TimeConv(channels, 2 * channels, 1, rngs=rngs) if temporal else None

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F2 H2 W2 C2"]:
        if self.time_conv is not None:
            x = self._double_time(x, stream)
        return upsample_conv2d(x, self.resample.kernel[...]) + self.resample.bias[...]

    def _double_time(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B F2 H W C"]:
        # A clip's first frame is not doubled, and the frames after it do not see it here: they begin with zeros.
        head, x = (x[:, :1], x[:, 1:]) if stream.first else (x[:, :0], x)
        batch, frames, height, width, channels = x.shape
        past = stream.past(x, 2)
        if not frames:
            return head
        past = jnp.zeros((batch, 2, height, width, channels), x.dtype) if past is None else past
        y = self.time_conv(jnp.concatenate([past, x], axis=1)).reshape(batch, frames, height, width, 2, channels)
        y = jnp.moveaxis(y, 4, 2).reshape(batch, 2 * frames, height, width, channels)
        return jnp.concatenate([head, y], axis=1)


def upsample_conv2d(x: Float[Array, "B F H W C"], kernel: Float[Array, "3 3 C C2"]) -> Float[Array, "B F H2 W2 C2"]:
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, at 4/9 of its multiplications: `_UPSAMPLED_TAPS`."""
    batch, frames, height, width, _ = x.shape
    taps = jnp.asarray(_UPSAMPLED_TAPS, kernel.dtype)
    kernels = jnp.einsum("apr,bqs,rsio->abpqio", taps, taps, kernel)
    # Even outputs look at the input before them, odd ones at the input after.
    sides = ((1, 0), (0, 1))
    rows = [[conv2d(x, kernels[a, b], (sides[a], sides[b])) for b in (0, 1)] for a in (0, 1)]
    y = jnp.stack([jnp.stack(row, axis=4) for row in rows], axis=3)
    return y.reshape(batch, frames, 2 * height, 2 * width, -1)


class ChannelNorm(nnx.Module):
    """Scales every position's channels to unit mean square, in fp32 (reference: `WanRMS_norm`)."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*S C"]) -> Float[Array, "*S C"]:
        y = at_least_fp32(x)
        square = jnp.sum(y * y, axis=-1, keepdims=True)
        # An all-zero position stays zero and passes no gradient: 1 / norm would make it infinite.
        nonzero = square > 1e-24
        inverse = jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, square, 1.0) / x.shape[-1]), 0.0)
        return (y * inverse).astype(x.dtype) * self.scale[...]
