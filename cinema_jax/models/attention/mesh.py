"""Attention device by device over the current mesh: batch and heads split, and tokens exchanged over `context`.

Tokens arrive split over `context`, but every query wants every key. DeepSpeed-Ulysses (arXiv 2309.14509) turns a share
of the tokens of all heads into all tokens of a share of the heads, and back, by all-to-alls. The heads are filled up
with zeros to a number that divides. Where there would be too many of those, keys and values are gathered instead. Where
many queries attend to few keys (a video to its text), every device has those keys, and nothing is exchanged.
"""

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from cinema_jax.devices.axes import BATCH, CONTEXT, TENSOR
from cinema_jax.errors import InputError

# Self-attention over fewer tokens is computed as without a `context` axis: it is cheap, and comes from models that do
# not split their tokens.
EXCHANGE_TOKENS = 4096
# Zero heads, as a share of the real ones, above which keys and values are gathered instead.
_MAX_ZERO_HEADS = 0.15

# Of the queries and of the keys.
Segments = tuple[Int[Array, "B S"], Int[Array, "B S2"]]

logger = logging.getLogger(__name__)


@functools.cache
def context_exchange(heads: int, context: int, tensor: int) -> str:
    """How self-attention with so many query heads is shared out over `context`; logged once per choice.

    Returns:
        "ulysses": each device attends with its share of the heads, to all tokens.
        "gather": each device attends with all heads (of its `tensor` share), for its own queries.
    """
    padded = math.ceil(heads / (context * tensor)) * context * tensor
    way = "ulysses" if padded <= (1 + _MAX_ZERO_HEADS) * heads else "gather"
    done = f"exchanged as {padded} heads" if way == "ulysses" else "keys and values gathered"
    logger.info("attention with %d heads over context %d x tensor %d: %s", heads, context, tensor, done)
    return way


def exchange(
    q: Float[Array, "B S N D"] | jax.ShapeDtypeStruct,
    k: Float[Array, "B S2 N2 D"] | jax.ShapeDtypeStruct,
    *,
    causal: bool,
    bias: bool,
) -> str | None:
    """What is exchanged over `context` for this call; None: it is computed as without such an axis.

    Long self-attention is exchanged, and the queries of long cross-attention stay where they are ("own"). Not so,
    because little is to be won: short sequences; few queries; one head (a VAE's, whose frames are rows of the batch).
    And not so, because nobody needs it: a bias, and a causal mask where keys would be gathered.

    Raises:
        InputError: the tokens of long attention do not divide over `context`.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    context, tokens, heads = sizes.get(CONTEXT, 1), q.shape[1], q.shape[2]
    if context == 1 or tokens < k.shape[1] or tokens < EXCHANGE_TOKENS or heads == 1 or bias:
        return None
    if tokens % context:
        raise InputError(f"attention of {tokens} tokens; they must be a multiple of the mesh's context {context}")
    if tokens != k.shape[1]:
        return "own"
    way = context_exchange(heads, context, sizes.get(TENSOR, 1))
    return None if causal and way == "gather" else way


def attend_on_mesh(
    attend: Callable[..., Float[Array, "..."]],
    way: str | None,
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S2 N2 D"],
    v: Float[Array, "B S2 N2 D"],
    lengths: Int[Array, "B"] | None,
    segments: Segments | None,
) -> Float[Array, "B S N D"]:
    """`attend(q, k, v, lengths, segments)` on every device: rows over the batch axes, heads over `tensor`.

    Tokens are split over `context` if there is a `way` to exchange them, else each device sees all of them; for the way
    "own" only queries are. Rows that do not divide are not split; heads that do not are filled up with zeros.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    context, tensor, heads = sizes.get(CONTEXT, 1), sizes.get(TENSOR, 1), q.shape[2]
    parts = tensor * context if way == "ulysses" else tensor
    if k.shape[2] != heads and k.shape[2] % parts:
        k, v = (jnp.repeat(x, heads // k.shape[2], axis=2) for x in (k, v))
    q, k, v = (_fill_heads(x, tensor) for x in (q, k, v))

    rows = tuple(axis for axis in BATCH if axis in sizes)
    if q.shape[0] % math.prod(sizes[axis] for axis in rows):
        rows = None
    parts_of_heads = TENSOR if TENSOR in sizes else None
    spec = PartitionSpec(rows, CONTEXT if way else None, parts_of_heads)
    keys = PartitionSpec(rows, None, parts_of_heads) if way == "own" else spec
    # An exchange of heads leaves all tokens on each device; the other ways only those of the keys.
    own, whole = PartitionSpec(rows, CONTEXT if way in ("gather", "own") else None), PartitionSpec(rows)
    local = {"ulysses": _ulysses, "gather": _gather}.get(way, lambda attend, *inputs: attend(*inputs))
    out = jax.shard_map(
        functools.partial(local, attend),
        in_specs=(spec, keys, keys, whole, None if segments is None else (own, whole)),
        out_specs=spec,
        # Kernels do not say over which axes their outputs vary.
        check_vma=False,
    )(q, k, v, lengths, segments)
    return out[:, :, :heads]


def _ulysses(attend, q, k, v, lengths, segments):
    heads, size = q.shape[2], jax.lax.axis_size(CONTEXT)
    q, k, v = (_split_heads(_fill_heads(x, size), size) for x in (q, k, v))
    return _split_tokens(attend(q, k, v, lengths, segments), size)[:, :, :heads]


# What a device sends to each of the others is made the leading axis before the exchange: of all-to-alls along the axes
# of heads and tokens the TPU compiler makes the same copies, but takes 48 seconds for them instead of 4.
def _split_heads(x: Float[Array, "B S N D"], parts: int) -> Float[Array, "B S2 N2 D"]:
    """From a share of the tokens to a share of the heads."""
    batch, tokens, heads, size = x.shape
    x = x.reshape(batch, tokens, parts, heads // parts, size).transpose(2, 0, 3, 1, 4)
    x = jax.lax.all_to_all(x, CONTEXT, 0, 0, tiled=True)
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, parts * tokens, heads // parts, size)


def _split_tokens(x: Float[Array, "B S N D"], parts: int) -> Float[Array, "B S2 N2 D"]:
    """From a share of the heads to a share of the tokens."""
    batch, tokens, heads, size = x.shape
    x = x.reshape(batch, parts, tokens // parts, heads, size).transpose(1, 0, 3, 2, 4)
    x = jax.lax.all_to_all(x, CONTEXT, 0, 0, tiled=True)
    return x.transpose(1, 3, 0, 2, 4).reshape(batch, tokens // parts, parts * heads, size)


def _gather(attend, q, k, v, lengths, segments):
    k, v = (jax.lax.all_gather(x, CONTEXT, axis=1, tiled=True) for x in (k, v))
    return attend(q, k, v, lengths, segments)


def _fill_heads(x: Float[Array, "B S N D"], multiple: int) -> Float[Array, "B S N2 D"]:
    """Zero heads at the end."""
    missing = -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else x
