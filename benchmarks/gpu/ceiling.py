"""What the card multiplies at best, in bf16."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.gpu.record import Record, median


def matmul(record: Record) -> None:
    """Large products, and those of the feed-forward layers of 2b and 5b; the fastest is the ceiling of all shares."""
    n, tokens = (256, 512) if record.options.tiny else (8192, 17776)
    shapes = [(n, n, n), (2 * n, n, n)]
    if not record.options.tiny:
        shapes += [(tokens, 1920, 7680), (tokens, 7680, 1920), (tokens, 3072, 12288), (tokens, 12288, 3072)]
    multiply = jax.jit(jnp.matmul)
    for rows, inner, columns in shapes:
        record.attempt(f"{rows} x {inner} x {columns}", functools.partial(_product, multiply, rows, inner, columns))


def _product(multiply: Callable, rows: int, inner: int, columns: int) -> dict[str, float]:
    a = jax.random.normal(jax.random.key(0), (rows, inner), jnp.bfloat16)
    b = jax.random.normal(jax.random.key(1), (inner, columns), jnp.bfloat16)
    jax.block_until_ready(multiply(a, b))
    # Ten at once: what it takes to ask for one is no part of the time.
    seconds = median(lambda: [multiply(a, b) for _ in range(10)], jax.block_until_ready, enough=1.0) / 10
    return {"seconds": seconds, "tflops": 2 * rows * inner * columns / seconds / 1e12}
