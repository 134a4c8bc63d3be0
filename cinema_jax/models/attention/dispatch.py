"""One function for every model, and which implementation a call of it takes.

Nothing falls back in silence: `attention_backend` and `mesh.exchange` choose from shapes, dtypes and the mesh, before
anything runs.
"""

import functools
import os

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cinema_jax.errors import InputError
from cinema_jax.models import layers
from cinema_jax.models.attention import dense, mesh
from cinema_jax.models.attention.blocks import TRANSPOSED
from cinema_jax.models.attention.splash import OUTPUT, device_kind, splash
from cinema_jax.models.attention.transposed import transposed

# The variable of the environment that keeps TPUs at one of their two kernels.
KERNEL = "CINEMA_TPU_ATTENTION"

# Head sizes that cuDNN's fused attention takes on every GPU it supports: multiples of 8 up to this.
_CUDNN_MAX_HEAD_SIZE = 128
# The largest head that a TPU's kernels take; smaller ones are filled up with zeros to 64 or 128.
_TPU_MAX_HEAD_SIZE = 128
# Fewer queries or keys leave them few whole blocks, and their logits are small, ...
_TPU_TOKENS = 1024
# ... unless many queries attend to at least so many keys, with so many logits of one head.
_TPU_FEW_TOKENS, _TPU_HEAD_LOGITS = 256, 2048 * 2048
# Logits of one head above which a CPU is about as fast or faster one head at a time: they then stay in its cache, and
# memory does not grow with the batch.
_CPU_HEAD_LOGITS = 384 * 384
_BACKENDS = {
    "transposed": transposed,
    "splash": splash,
    "cudnn": dense.cudnn,
    "xla": dense.xla,
    "xla_heads": dense.xla_heads,
}
_KERNELS = ("transposed", "splash")


def attention_backend(
    q: Float[Array, "B S N D"] | jax.ShapeDtypeStruct,
    k: Float[Array, "B S2 N2 D"] | jax.ShapeDtypeStruct,
    *,
    bias: bool = False,
    masked: bool = False,
    platform: str | None = None,
    kind: str | None = None,
) -> str:
    """The implementation that `attention` takes for such queries and keys.

    Args:
        q, k: arrays, or only their shapes and dtypes.
        bias: whether a bias is added to the logits.
        masked: whether queries see different keys: by `causal` or `segments`.
        platform: "cpu", "gpu" or "tpu"; by default that of the mesh in use, or else JAX's default.
        kind: the device's, as JAX names it ("TPU v5 lite"); by default as for `platform`.

    Returns:
        "transposed": fused, on TPUs that its table knows, for many logits, head sizes up to 128, without bias or mask.
        "splash": fused, on other TPUs or with a mask, for the same sizes without bias.
        "cudnn": fused, on GPUs, in 16 bits.
        "xla": all logits at once.
        "xla_heads": one head of one sample at a time, the logits recomputed in the backward pass.

    `CINEMA_TPU_ATTENTION=splash` in the environment takes "splash" wherever it says "transposed".

    Raises:
        InputError: that variable names anything else.
    """
    platform = platform or layers.platform()
    if platform == "tpu":
        fewer = min(q.shape[1], k.shape[1])
        wide = fewer >= _TPU_FEW_TOKENS and q.shape[1] * k.shape[1] >= _TPU_HEAD_LOGITS
        long = fewer >= _TPU_TOKENS or wide
        if not long or q.shape[-1] > _TPU_MAX_HEAD_SIZE or bias:
            return "xla"
        return "splash" if masked else _kernel(kind or device_kind())
    if platform == "gpu":
        fused = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= _CUDNN_MAX_HEAD_SIZE
        return "cudnn" if fused else "xla"
    if platform == "cpu" and q.shape[1] * k.shape[1] >= _CPU_HEAD_LOGITS and not bias:
        return "xla_heads"
    return "xla"


def _kernel(kind: str) -> str:
    """Of the two kernels for TPUs the one that the environment asks for, or the faster one on this kind."""
    asked = os.environ.get(KERNEL, "transposed")
    if asked not in _KERNELS:
        raise InputError(f"{KERNEL} is {asked!r}; accepted is transposed or splash")
    return asked if kind in TRANSPOSED else "splash"


def attention(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S2 N2 D"],
    v: Float[Array, "B S2 N2 D"],
    *,
    kv_lengths: Int[Array, "B"] | None = None,
    segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    bias: Float[Array, "#B N S S2"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B S N D"]:
    """Softmax attention; keys at or past `kv_lengths` are masked, as is what `causal` or unequal `segments` forbid.

    Grouped queries (`N` a multiple of `N2`) are allowed. `scale` defaults to D ** -0.5; `bias` is added to the scaled
    logits. The softmax runs in fp32. `causal` and `segments` want as many queries as keys. A query that may see no key
    at all gets some finite value, not the same one from every backend.

    Raises:
        ValueError: if the heads of `q` are no multiple of those of `k`; queries and keys differ in number though
            `causal` or `segments` compares them; or long self-attention does not divide over the mesh's `context` axis.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} heads; it must be a multiple of the {k.shape[2]} heads of k")
    if (causal or segments is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal or segments with {q.shape[1]} queries and {k.shape[1]} keys; they must be as many")
    backend = attention_backend(q, k, bias=bias is not None, masked=causal or segments is not None)
    way = mesh.exchange(q, k, causal=causal, bias=bias is not None)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attend = functools.partial(_BACKENDS[backend], causal=causal, scale=scale)
    if bias is not None:
        attend = functools.partial(attend, bias=bias)
    pair = None if segments is None else (segments, segments)
    # A kernel cannot be partitioned by XLA, and the exchange is written for one device.
    if way or (backend in _KERNELS and jax.sharding.get_abstract_mesh().size > 1):
        out = mesh.attend_on_mesh(attend, way, q, k, v, kv_lengths, pair)
    else:
        out = attend(q, k, v, kv_lengths, pair)
    # Kernels name what they keep by themselves; a second copy would be kept as well.
    return out if backend in _KERNELS else checkpoint_name(out, OUTPUT)
