"""Attention as the networks call it, in bf16, against XLA's in fp32 on the same numbers."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.record import Record
from cinema_jax.models.attention import attention, attention_backend, dense

# Of the largest value: bf16 has steps of 0.4 %.
BOUND = 0.02


class Case(NamedTuple):
    """Numbers of queries, keys and heads, and what is masked."""

    name: str
    queries: int
    keys: int
    size: int
    options: dict[str, Any]
    grouped: int = 1


def cases(tokens: int, sizes: tuple[int, ...]) -> Iterator[Case]:
    """All kinds of calls that the networks make, for these sizes of heads; `tokens` is even."""
    n, few = tokens, tokens // 4
    ids = np.sort(np.random.default_rng(0).integers(1, 4, (2, n)), axis=1).astype(np.int32)
    lengths = np.int32([n, n // 3])
    for size in sizes:
        yield Case("plain", n, n, size, {})
        yield Case("odd", n - 1, n - 1, size, {})
        yield Case("lengths", n, n, size, {"kv_lengths": lengths})
        yield Case("odd, lengths", n - 1, n - 1, size, {"kv_lengths": lengths - 1})
        yield Case("segments", n, n, size, {"segments": ids})
        yield Case("odd, segments", n - 1, n - 1, size, {"segments": ids[:, 1:]})
        yield Case("causal", n, n, size, {"causal": True})
        yield Case("odd, causal", n - 1, n - 1, size, {"causal": True})
        yield Case("causal, grouped", n, n, size, {"causal": True, "kv_lengths": lengths}, grouped=2)
        yield Case("cross", n, few, size, {})
        yield Case("cross, lengths", n, few, size, {"kv_lengths": np.int32([few, 3])})
        yield Case("odd, cross", n - 1, few - 1, size, {})
    # T5's, whose heads have 64.
    bias = np.random.default_rng(1).standard_normal((1, 4, n, n), np.float32)
    yield Case("bias", n, n, 64, {"bias": bias})
    yield Case("odd, bias", n - 1, n - 1, 64, {"bias": bias[:, :, 1:, 1:]})


def inputs(case: Case) -> tuple[jax.Array, ...]:
    """q, k, v, and the weights of the sum whose gradient is compared."""
    rng = np.random.default_rng(2)
    heads = 4, 4 // case.grouped, 4 // case.grouped, 4
    tokens = case.queries, case.keys, case.keys, case.queries
    shapes = [(2, n, count, case.size) for n, count in zip(tokens, heads, strict=True)]
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16) for shape in shapes)


def both(attend, q, k, v, weights):
    """The output, and gradients of a weighted sum of it."""

    def total(q, k, v):
        out = attend(q, k, v)
        return (out.astype(jnp.float32) * weights).sum(), out

    gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return {"forward": out, **dict(zip(("q", "k", "v"), gradients, strict=True))}


def exact(case: Case, q, k, v):
    """XLA's, in fp32, with no shortcut in its products."""
    options = dict(case.options)
    ids, lengths = options.pop("segments", None), options.pop("kv_lengths", None)
    pair = None if ids is None else (ids, ids)
    options = {"causal": False} | options
    with jax.default_matmul_precision("highest"):
        return dense.xla(q, k, v, lengths, pair, scale=case.size**-0.5, **options)


def error(found: jax.Array, expected: jax.Array) -> float:
    """The largest difference, over the largest value."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compiled(case: Case) -> tuple[Any, Any]:
    """Both programs; compilers do not hold Python's lock."""
    arrays = inputs(case)
    ours = jax.jit(functools.partial(both, functools.partial(attention, **case.options)))
    reference = jax.jit(functools.partial(both, functools.partial(exact, case)))
    wide = tuple(x.astype(jnp.float32) for x in arrays)
    return ours.lower(*arrays).compile(), reference.lower(*wide).compile()


def compare(record: Record) -> None:
    """A line for each case."""
    listed = list(cases(32, (64,)) if record.options.tiny else cases(1024, (64, 128)))
    with ThreadPoolExecutor(2 if record.options.tiny else 12) as pool:
        waiting = [pool.submit(compiled, case) for case in listed]
        for case, future in zip(listed, waiting, strict=True):
            name = f"{case.name}, {case.queries} x {case.keys}, head size {case.size}"
            record.attempt(name, functools.partial(_errors, case, future))


def _errors(case: Case, future: Any) -> dict[str, Any]:
    ours, reference = future.result()
    arrays = inputs(case)
    found, expected = ours(*arrays), reference(*(x.astype(jnp.float32) for x in arrays))
    errors = {name: error(found[name], expected[name]) for name in found}
    backend = attention_backend(*arrays[:2], bias="bias" in case.options)
    return {"backend": backend, "errors": errors, "within": max(errors.values()) < BOUND}
