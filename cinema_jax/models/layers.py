"""Layers shared by the models."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cinema_jax.devices.sharding import fetched, gathered_layer, is_away
from cinema_jax.models.activations import REMAT
from cinema_jax.models.numerics import at_least_fp32

# Flow time is in [0, 1]; networks read it in steps of 1000.
TIMESTEPS = 1000.0
# What a CPU gets written out: at most so many layers, as compilation takes longer with each, ...
_WRITTEN_OUT = 8
# ... of at most so many parameters for each number that passes through.
_WRITTEN_OUT_RATIO = 12


def stack_layers(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` independently initialised copies as one module whose every parameter has a leading `layer` axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build_all(rngs):
        return build(rngs)

    return build_all(rngs)


def scan_layers(
    layers: nnx.Module,
    x: Any,
    apply: Callable[[nnx.Module, Any], Any],
    *,
    count: int | None = None,
    remat: str = "none",
) -> Any:
    """Run stacked layers one after the other: `x = apply(layer, x)`, for the first `count` layers (default all).

    One layer is traced and compiled, whatever their number. The stacked parameters go in as scan inputs: as closure
    constants they would be gathered whole. `remat` says what the backward pass finds: "none" (of recomputation; all is
    kept), or a name of `activations.REMAT`.

    A CPU gets a few small layers written out instead: what the backward pass needs then stays where it is, while a scan
    copies it into and out of one array for all layers. That is a fifth of a training step (6 layers of width 256, batch
    32 x 112 tokens). Large layers stay in a scan, because writing them out copies their parameters (T5 v1.1 large, 226
    tokens: a forward pass of 0.30 instead of 0.15 s). The result is the same.

    Layers that lie with the host (`sharding.HOST`) are copied to the device one by one, each while the one before it is
    computed: two of them are there at a time.
    """
    graph, state = nnx.split(layers)
    if count is not None:
        state = jax.tree.map(lambda leaf: leaf[:count], state)
    size = len(jax.tree.leaves(state)[0])

    def step(x, state):
        # In here, so that no more than one layer is whole at a time, forth and back.
        return apply(nnx.merge(graph, gathered_layer(state, size)), x), None

    written_out = platform() == "cpu" and _to_write_out(state, x)
    if remat != "none":
        # A scan keeps the two computations of a layer apart by itself.
        step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=written_out)
    if not written_out:
        away = any(map(is_away, jax.tree.leaves(state)))
        return _scan_ahead(step, x, state, size) if away else jax.lax.scan(step, x, state)[0]
    # Unstacked at once, because the gradient of that is one concatenation; of leaf[i] it is a sum of whole arrays.
    leaves, structure = jax.tree.flatten(fetched(state))
    for layer in zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True):
        x, _ = step(x, structure.unflatten(layer))
    return x


def _scan_ahead(step: Callable[[Any, Any], tuple[Any, None]], x: Any, state: Any, size: int) -> Any:
    """`jax.lax.scan(step, x, state)[0]`, where each layer has been fetched in the turn before its own."""

    def layer(number: Any) -> Any:
        return fetched(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), state))

    def turn(carry: tuple[Any, Any], number: Any) -> tuple[tuple[Any, Any], None]:
        x, own = carry
        # The last turn fetches its own layer again, for nobody: a turn without that would be a program of its own.
        following = layer(jnp.minimum(number + 1, size - 1))
        return (step(x, own)[0], following), None

    return jax.lax.scan(turn, (x, layer(0)), jnp.arange(size))[0][0]


def _to_write_out(state: Any, x: Any) -> bool:
    leaves = jax.tree.leaves(state)
    count = len(leaves[0])
    ratio = sum(leaf.size for leaf in leaves) / max(count, 1) / sum(leaf.size for leaf in jax.tree.leaves(x))
    return count <= _WRITTEN_OUT and ratio <= _WRITTEN_OUT_RATIO


def platform() -> str:
    """Where the program being traced will run: "cpu", "gpu" or "tpu"."""
    # The mesh first: a program may be compiled for accelerators that this machine does not have.
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device else jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


class Linear(nnx.Linear):
    """`nnx.Linear`, with the leading axes of its input joined for the product where that is faster: on CPUs.

    There XLA computes the kernel's gradient through transposed copies if its operands have three axes, but not if they
    are matrices (a feed-forward network at width 256, forward and backward: 82 instead of 189 ms of processor time).
    Elsewhere the axes stay, because joining sharded ones would move data.
    """

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D2"]:
        """`x` times the kernel over its last axis, plus the bias."""
        if platform() != "cpu" or x.ndim <= 2:
            return super().__call__(x)
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[ArrayLike, "D"] | None, bias: Float[ArrayLike, "D"] | None, eps: float
) -> Float[Array, "... D"]:
    """Normalise the last axis to mean 0 and variance 1, in fp32; the result has the dtype of `x`."""
    y = at_least_fp32(x)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large.
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(x: Float[Array, "... D"], scale: Float[ArrayLike, "D"], eps: float) -> Float[Array, "... D"]:
    """Divide by the root mean square of the last axis, in fp32; the result has the dtype of `x`."""
    y = at_least_fp32(x)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm` with a learned scale and bias."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """`x`, normalised over its last axis."""
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """`x`, normalised over its last axis."""
        return rms_norm(x, self.scale[...], self.eps)


class SwiGLU(nnx.Module):
    """A gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, *, use_bias: bool, rngs: nnx.Rngs):
        self.gate_proj = Linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.up_proj = Linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.down_proj = Linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """`x` through the layer, without the residual."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def sinusoidal_embedding(
    timestep: Float[Array, "B"], size: int, *, max_period: float = 10000.0
) -> Float[Array, "B {size}"]:
    """Cosines, then sines, of a diffusion timestep (unit: steps of 1000) at `size / 2` frequencies, in fp32."""
    timestep = at_least_fp32(timestep)
    frequencies = jnp.exp(-math.log(max_period) / (size // 2) * jnp.arange(size // 2, dtype=timestep.dtype))
    angles = timestep[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """A diffusion timestep as a vector: sinusoids, then two linear layers with a SiLU between."""

    def __init__(self, sinusoids: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.linear_1 = Linear(sinusoids, width, kernel_init=init, rngs=rngs)
        self.linear_2 = Linear(width, width, kernel_init=init, rngs=rngs)

    def __call__(self, timestep: Float[Array, "B"]) -> Float[Array, "B D"]:
        """`timestep` in steps of 1000; the result has the parameters' dtype."""
        x = sinusoidal_embedding(timestep, self.linear_1.in_features)
        return self.linear_2(jax.nn.silu(self.linear_1(x.astype(self.linear_1.kernel.dtype))))


def rotate_pairs(
    x: Float[Array, "B S N D"], cos: Float[Array, "*#BS R"], sin: Float[Array, "*#BS R"]
) -> Float[Array, "B S N D"]:
    """Rotary embedding where channels 2i and 2i+1 of every head are one plane (CogVideoX, Wan); `R` is D / 2.

    `cos` and `sin` of each token's angles are `S R`, or `B S R` where samples differ. Computed in fp32.
    """
    cos, sin = (jnp.repeat(table, 2, axis=-1)[..., None, :] for table in (cos, sin))
    # (a, b) to (-b, a) by an exact product: an axis of pairs would be padded to 128 numbers on TPUs.
    turn = np.kron(np.eye(x.shape[-1] // 2), np.array([[0, 1], [-1, 0]])).astype(x.dtype)
    turned = jnp.matmul(x, turn, precision=jax.lax.Precision.HIGHEST)
    return (at_least_fp32(x) * cos + at_least_fp32(turned) * sin).astype(x.dtype)


def rotate_halves(
    x: Float[Array, "B S N D"], cos: Float[Array, "*#BS R"], sin: Float[Array, "*#BS R"]
) -> Float[Array, "B S N D"]:
    """Rotary embedding where channels i and i + D/2 of every head are one plane (Qwen, Llama); else `rotate_pairs`."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    a, b = jnp.split(at_least_fp32(x), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
