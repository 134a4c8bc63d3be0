"""One function for every model, and which implementation a call of it takes.

Nothing falls back in silence: `attention_backend` and `mesh.exchange` choose from shapes, dtypes and the mesh, before
anything runs.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cinema_jax.models import layers
from cinema_jax.models.attention import dense, mesh
from cinema_jax.models.attention.splash import OUTPUT, splash

# Head sizes that cuDNN's fused attention takes on every GPU it supports: multiples of 8 up to this.
_CUDNN_MAX_HEAD_SIZE = 128
# The largest head that splash takes; smaller ones are filled up with zeros to 64 or 128.
_SPLASH_MAX_HEAD_SIZE = 128
# Fewer queries or keys leave splash few whole blocks, and their logits are small, ...
_SPLASH_TOKENS = 1024
# ... unless many queries attend to at least so many keys, with so many logits of one head.
_SPLASH_FEW_TOKENS, _SPLASH_HEAD_LOGITS = 256, 2048 * 2048
# Logits of one head above which a CPU is about as fast or faster one head at a time: they then stay in its cache, and
# memory does not grow with the batch.
_CPU_HEAD_LOGITS = 384 * 384
_BACKENDS = {"splash": splash, "cudnn": dense.cudnn, "xla": dense.xla, "xla_heads": dense.xla_heads}


def attention_backend(
    q: Float[Array, "B S N D"] | jax.ShapeDtypeStruct,
    k: Float[Array, "B S2 N2 D"] | jax.ShapeDtypeStruct,
    *,
    bias: bool = False,
    platform: str | None = None,
) -> str:
    """The implementation that `attention` takes for such queries and keys.

    Args:
        q, k: arrays, or only their shapes and dtypes.
        bias: whether a bias is added to the logits.
        platform: "cpu", "gpu" or "tpu"; by default that of the mesh in use, or else JAX's default.

    Returns:
        "splash": fused, on TPUs, for many logits, head sizes up to 128, without bias.
        "cudnn": fused, on GPUs, in 16 bits.
        "xla": all logits at once.
        "xla_heads": one head of one sample at a time, the logits recomputed in the backward pass.
    """
    platform = platform or layers.platform()
    if platform == "tpu":
        fewer = min(q.shape[1], k.shape[1])
        wide = fewer >= _SPLASH_FEW_TOKENS and q.shape[1] * k.shape[1] >= _SPLASH_HEAD_LOGITS
        long = fewer >= _SPLASH_TOKENS or wide
        return "splash" if long and q.shape[-1] <= _SPLASH_MAX_HEAD_SIZE and not bias else "xla"
    if platform == "gpu":
        fused = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= _CUDNN_MAX_HEAD_SIZE
        return "cudnn" if fused else "xla"
    if platform == "cpu" and q.shape[1] * k.shape[1] >= _CPU_HEAD_LOGITS and not bias:
        return "xla_heads"
    return "xla"


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
    backend = attention_backend(q, k, bias=bias is not None)
    way = mesh.exchange(q, k, causal=causal, bias=bias is not None)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attend = functools.partial(_BACKENDS[backend], causal=causal, scale=scale)
    if bias is not None:
        attend = functools.partial(attend, bias=bias)
    pair = None if segments is None else (segments, segments)
    # A kernel cannot be partitioned by XLA, and the exchange is written for one device.
    if way or (backend == "splash" and jax.sharding.get_abstract_mesh().size > 1):
        out = mesh.attend_on_mesh(attend, way, q, k, v, kv_lengths, pair)
    else:
        out = attend(q, k, v, kv_lengths, pair)
    # Splash names what it keeps by itself; a second copy would be kept as well.
    return out if backend == "splash" else checkpoint_name(out, OUTPUT)
