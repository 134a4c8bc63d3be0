"""Attention by kernels that keep the logits as (keys, queries), and never in memory: for long video. TPUs only.

A head of 64 fills half of a TPU's multiplier wherever the head is summed over or is a product's last axis. With the
logits transposed it is the first one in all products but K Q^T and V dO^T, and those run at full rate. The softmax's
statistics are rows, a few registers of them. The backward kernel computes the logits once, and holds the gradient of a
head's queries in fast memory until all keys were seen. Every sum has one order, so results are the same in every run.

Keys past a sample's length are not loaded, let alone multiplied; only the block in which the length falls is masked.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from cinema_jax.models import layers
from cinema_jax.models.attention.blocks import Tiles, tiles
from cinema_jax.models.attention.mesh import Segments
from cinema_jax.models.attention.splash import OUTPUT, device_kind, pad

_LOWEST = -1e30
# Of one head's queries: so much of a core's fast memory may hold their gradient, as it is summed and as it is returned
# (twice, while the one before is copied away). More queries are taken in turns.
_GRADIENT_BYTES = 32 * 2**20
_VMEM_BYTES = 60 * 2**20
_T, _U = TypeVar("_T"), TypeVar("_U")


def transposed(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S2 N2 D"],
    v: Float[Array, "B S2 N2 D"],
    lengths: Int[Array, "B"] | None,
    segments: Segments | None,
    *,
    causal: bool,
    scale: float,
    sizes: tuple[Tiles, Tiles] | None = None,
) -> Float[Array, "B S N D"]:
    """`attention` on one device, without `segments` and not `causal`; off TPUs the kernels are interpreted, slowly.

    `sizes` are those of both passes, by default the table's. A query without any key gets zeros.
    """
    if segments is not None or causal:
        raise ValueError("attention by transposed logits has no segments and no causal mask; take splash")
    groups, size = q.shape[2] // k.shape[2], q.shape[-1]
    k, v = (jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in (k, v))
    # Zeros change no logit, and the output's are cut off.
    q, k, v = (pad(x, 3, 64 if size <= 64 else 128) for x in (q, k, v))
    sizes = sizes or tiles(device_kind(), q.shape[1], k.shape[1])
    keys = jnp.full(q.shape[0], k.shape[1], jnp.int32)
    lengths = keys if lengths is None else jnp.minimum(keys, lengths)
    return _attend(q, k, v, lengths, scale, sizes)[..., :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, lengths, scale, sizes):
    return _forward(q, k, v, lengths, scale, sizes)[0]


# A program of its own: what a remat policy leaves unused of it is then left out at once.
@functools.partial(jax.jit, static_argnums=(4, 5))
def _forward(q, k, v, lengths, scale, sizes):
    """The output, and the binary logarithm of each query's sum of exponentials: (B, S, N, D) and (B x N, 1, S)."""
    batch, queries, heads, size = q.shape
    one = sizes[0]
    q, k, v = _columns(q, max(x.queries for x in sizes)), _rows(k, one.keys), _columns(v, one.keys)
    steps = k.shape[1] // one.keys

    # Blocks without any key are not loaded: the one before stays.
    def of_keys(head, _, step, lengths):
        return head, jnp.minimum(step, jnp.maximum(pl.cdiv(lengths[head // heads], one.keys) - 1, 0))

    column = pl.BlockSpec((None, size, one.queries), lambda head, block, *_: (head, 0, block))
    out, sums = pl.pallas_call(
        functools.partial(_forward_kernel, one=one, steps=steps, heads=heads, factor=scale * math.log2(math.e)),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((q.shape[0], 1, q.shape[2]), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(q.shape[0], q.shape[2] // one.queries, steps),
            in_specs=(
                column,
                pl.BlockSpec((None, one.keys, size), lambda *at: (*of_keys(*at), 0)),
                pl.BlockSpec((None, size, one.keys), lambda *at: (of_keys(*at)[0], 0, of_keys(*at)[1])),
            ),
            out_specs=(column, pl.BlockSpec((None, 1, one.queries), lambda head, block, *_: (head, 0, block))),
            scratch_shapes=(
                pltpu.VMEM((1, one.queries), jnp.float32),
                pltpu.VMEM((1, one.queries), jnp.float32),
                pltpu.VMEM((size, one.queries), jnp.float32),
            ),
        ),
        compiler_params=_parameters("parallel", "parallel", "arbitrary"),
        interpret=layers.platform() != "tpu",
        name="transposed_forward",
    )(lengths, q, k, v)
    return _tokens_first(out, batch, queries), sums


def _forward_kernel(
    lengths, q_ref, k_ref, v_ref, out_ref, sums_ref, top_ref, sum_ref, acc_ref, *, one, steps, heads, factor
):
    """One block of queries and keys; `top` and `sum` are those of the exponents and exponentials so far."""
    step, length = pl.program_id(2), lengths[pl.program_id(0) // heads]

    @pl.when(step == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, _LOWEST)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def logits(keys, queries):
        return _dot(k_ref[keys, :], q_ref[:, queries])

    def weigh(keys, queries, logits, keep):
        exponents = logits * factor
        exponents = exponents if keep is None else jnp.where(keep, exponents, _LOWEST)
        top = jnp.maximum(top_ref[:, queries], exponents.max(0, keepdims=True))
        weights, shrink = jnp.exp2(exponents - top), jnp.exp2(top_ref[:, queries] - top)
        sum_ref[:, queries] = sum_ref[:, queries] * shrink + weights.sum(0, keepdims=True)
        top_ref[:, queries] = top
        return weights.astype(v_ref.dtype), shrink

    def add(keys, queries, weights):
        acc_ref[:, queries] = acc_ref[:, queries] * weights[1] + _dot(v_ref[:, keys], weights[0])

    _run(one, length - step * one.keys, logits, weigh, add)

    @pl.when(step == steps - 1)
    def _():
        # Of no keys at all: zeros.
        total = jnp.maximum(sum_ref[...], jnp.finfo(jnp.float32).tiny)
        out_ref[...] = (acc_ref[...] / total).astype(out_ref.dtype)
        sums_ref[...] = top_ref[...] + jnp.log2(total)


def _backward(scale, sizes, kept, d_out):
    q, k, v, lengths, out, sums = kept
    batch, queries, heads, size = q.shape
    one = sizes[1]
    # Padded queries have a gradient of zero, so that their weights, whatever they are, add nothing.
    products = jnp.einsum("bsnd,bsnd->bns", d_out, out, preferred_element_type=jnp.float32)
    products = pad(products.reshape(batch * heads, 1, queries), 2, sums.shape[2])
    columns = _columns(q, sums.shape[2]), _columns(d_out, sums.shape[2]), sums, products
    keys = _rows(k, one.keys), _columns(k, one.keys), _rows(v, one.keys)
    most = _GRADIENT_BYTES // (size * (4 + 2 * q.dtype.itemsize)) // one.queries * one.queries
    turns = [[x[..., at : at + most] for x in columns] for at in range(0, sums.shape[2], most)]
    dq, dk, dv = zip(*(_gradients(lengths, *turn, *keys, heads, one, scale) for turn in turns), strict=True)
    dk, dv = (x[0] if len(x) == 1 else sum(y.astype(jnp.float32) for y in x).astype(q.dtype) for x in (dk, dv))
    dq = jnp.concatenate(dq, axis=2) if len(dq) > 1 else dq[0]
    return _tokens_first(dq, batch, queries), *(_tokens_first(x, batch, k.shape[1]) for x in (dk, dv)), None


def _named(q, k, v, lengths, scale, sizes):
    """What the backward pass keeps; a policy that saves the name does not run the forward kernel again."""
    out, sums = (checkpoint_name(x, OUTPUT) for x in _forward(q, k, v, lengths, scale, sizes))
    return out, (q, k, v, lengths, out, sums)


_attend.defvjp(_named, _backward)


def _gradients(lengths, q, d_out, sums, products, k, k_columns, v, heads, one, scale):
    """Those of queries, keys and values, in columns."""
    steps = q.shape[2] // one.queries, k.shape[1] // one.keys

    # Of keys that do not count nothing is loaded.
    def some(head, block, lengths):
        return block * one.keys < lengths[head // heads]

    def of_queries(rows):
        return pl.BlockSpec(
            (None, rows, one.queries),
            lambda head, block, step, lengths: (head, 0, jnp.where(some(head, block, lengths), step, steps[0] - 1)),
        )

    size = q.shape[1]
    rows = pl.BlockSpec((None, one.keys, size), lambda head, block, *_: (head, block, 0))
    columns = pl.BlockSpec((None, size, one.keys), lambda head, block, *_: (head, 0, block))
    whole = pl.BlockSpec((None, *q.shape[1:]), lambda head, *_: (head, 0, 0))
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k_columns, k_columns)]
    return pl.pallas_call(
        functools.partial(_backward_kernel, one=one, steps=steps, heads=heads, scale=scale),
        out_shape=like,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(q.shape[0], steps[1], steps[0]),
            in_specs=(of_queries(size), of_queries(size), of_queries(1), of_queries(1), rows, columns, rows),
            out_specs=(whole, columns, columns),
            scratch_shapes=(
                pltpu.VMEM(q.shape[1:], jnp.float32),
                pltpu.VMEM((size, one.keys), jnp.float32),
                pltpu.VMEM((size, one.keys), jnp.float32),
            ),
        ),
        compiler_params=_parameters("parallel", "arbitrary", "arbitrary"),
        interpret=layers.platform() != "tpu",
        name="transposed_backward",
    )(lengths, q, d_out, sums, products, k, k_columns, v)


def _backward_kernel(
    lengths, q_ref, d_out_ref, sums_ref, products_ref, k_ref, k_columns_ref, v_ref, dq_ref, dk_ref, dv_ref,
    dq_acc, dk_acc, dv_acc, *, one, steps, heads, scale,
):  # fmt: skip
    """One block of keys and queries, all queries for a block of keys before the next."""
    block, step = pl.program_id(1), pl.program_id(2)
    length, start = lengths[pl.program_id(0) // heads], step * one.queries

    @pl.when(step == 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    @pl.when(block == 0)
    def _():
        dq_acc[:, pl.ds(start, one.queries)] = jnp.zeros((dq_acc.shape[0], one.queries), jnp.float32)

    def logits(keys, queries):
        return _dot(k_ref[keys, :], q_ref[:, queries]), _dot(v_ref[keys, :], d_out_ref[:, queries])

    def weigh(keys, queries, both, keep):
        exponents = both[0] * (scale * math.log2(math.e)) - sums_ref[:, queries]
        weights = jnp.exp2(exponents if keep is None else jnp.where(keep, exponents, _LOWEST))
        slopes = weights * (both[1] - products_ref[:, queries])
        return weights.astype(v_ref.dtype), slopes.astype(v_ref.dtype)

    def add(keys, queries, both):
        weights, slopes = both
        dv_acc[:, keys] += _dot(d_out_ref[:, queries], weights, over=1)
        dk_acc[:, keys] += _dot(q_ref[:, queries], slopes, over=1)
        dq_acc[:, pl.ds(start + queries.start, queries.size)] += _dot(k_columns_ref[:, keys], slopes)

    _run(one, length - block * one.keys, logits, weigh, add)

    @pl.when(step == steps[0] - 1)
    def _():
        dk_ref[...] = (dk_acc[...] * scale).astype(dk_ref.dtype)
        dv_ref[...] = dv_acc[...].astype(dv_ref.dtype)

    @pl.when(block == steps[1] - 1)
    def _():
        at = pl.ds(start, one.queries)
        dq_ref[:, at] = (dq_acc[:, at] * scale).astype(dq_ref.dtype)


def _run(
    one: Tiles,
    left: Int[Array, ""],
    logits: Callable[[pl.Slice, pl.Slice], _T],
    weigh: Callable[[pl.Slice, pl.Slice, _T, Array | None], _U],
    add: Callable[[pl.Slice, pl.Slice, _U], None],
) -> None:
    """The three parts of all tiles of a block of which the first `left` keys count.

    The next tile's logits are asked for before a tile is weighed, and its sums after the next one's: the multipliers,
    which take their orders in turn, then never wait for a softmax.
    """
    columns = [pl.ds(at, one.queries_at_once) for at in range(0, one.queries, one.queries_at_once)]

    @pl.when(left >= one.keys)
    def _():
        rows = [pl.ds(at, one.keys_at_once) for at in range(0, one.keys, one.keys_at_once)]
        _in_turn([(keys, queries) for keys in rows for queries in columns], logits, weigh, add, None)

    @pl.when((left > 0) & (left < one.keys))
    def _():
        # Rare, and therefore little code: a loop over the rows of tiles that have a key.
        @pl.loop(0, pl.cdiv(left, one.keys_at_once))
        def _(row):
            at = pl.multiple_of(row * one.keys_at_once, one.keys_at_once)
            keep = at + lax.broadcasted_iota(jnp.int32, (one.keys_at_once, one.queries_at_once), 0) < left
            keys = pl.ds(at, one.keys_at_once)
            _in_turn([(keys, queries) for queries in columns], logits, weigh, add, keep)


def _in_turn(pairs: Sequence[tuple[pl.Slice, pl.Slice]], logits, weigh, add, keep) -> None:
    found, before = logits(*pairs[0]), None
    for i, pair in enumerate(pairs):
        following = logits(*pairs[i + 1]) if i + 1 < len(pairs) else None
        weighed = weigh(*pair, found, keep)
        if i:
            add(*pairs[i - 1], before)
        found, before = following, weighed
    add(*pairs[-1], before)


def _dot(a: Float[Array, "M K"], b: Float[Array, "..."], over: int = 0) -> Float[Array, "M N"]:
    """Products summed over the last axis of `a` and that of `b`, in fp32."""
    return lax.dot_general(a, b, (((1,), (over,)), ((), ())), preferred_element_type=jnp.float32)


def _rows(x: Float[Array, "B S N D"], block: int) -> Float[Array, "BN S2 D"]:
    """Heads first, and whole blocks of tokens."""
    x = pad(x, 1, x.shape[1] + -x.shape[1] % block)
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _columns(x: Float[Array, "B S N D"], block: int) -> Float[Array, "BN D S2"]:
    """Heads first, tokens last, and whole blocks of these."""
    x = pad(x, 1, x.shape[1] + -x.shape[1] % block)
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[3], x.shape[1])


def _tokens_first(x: Float[Array, "BN D S2"], batch: int, tokens: int) -> Float[Array, "B S N D"]:
    """The inverse of `_columns`."""
    return x[..., :tokens].reshape(batch, -1, *x.shape[1:2], tokens).transpose(0, 3, 1, 2)


def _parameters(*semantics: str) -> pltpu.CompilerParams:
    # No block reaches past its array: all were filled up to whole blocks.
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM_BYTES, disable_bounds_checks=True)
