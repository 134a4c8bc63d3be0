"""Counted products against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cinema_jax.devices.flops import matmul_flops

A, B = jnp.zeros((3, 4)), jnp.zeros((4, 5))
PRODUCT = 2 * 3 * 4 * 5


def convolve(x, kernel):
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.matmul, (A, B), PRODUCT),
        (lambda a, b: jnp.tanh(a) + 1, (A, B), 0),
        (jax.jit(jnp.matmul), (A, B), PRODUCT),
        (lambda a, b: jnp.einsum("bij,jk->bik", a, b), (jnp.zeros((7, 3, 4)), B), 7 * PRODUCT),
        # A gradient has two products for each one.
        (jax.value_and_grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), (A, B), 3 * PRODUCT),
        (lambda a, b: lax.scan(lambda c, _: (c, a @ b), 0.0, None, length=6), (A, B), 6 * PRODUCT),
        (lambda a, b: lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 5))), (A, B), PRODUCT),
        (convolve, (jnp.zeros((2, 8, 6, 3)), jnp.zeros((3, 3, 3, 5))), 2 * (2 * 4 * 3 * 5) * 27),
    ],
)
def test_products_are_counted(function, arguments, expected):
    assert matmul_flops(function, *arguments) == expected


def test_a_recomputed_product_counts_twice():
    def f(a, b):
        return jnp.tanh(jnp.tanh(a @ b) @ b.T).sum()

    # Forward 2, backward 4, and the first product once more; the recomputed second one is used by nothing.
    assert matmul_flops(jax.grad(jax.checkpoint(f), argnums=(0, 1)), A, B) >= 7 * PRODUCT


def test_a_loop_of_unknown_length_is_refused():
    def f(a):
        return lax.while_loop(lambda a: a.sum() < 1, lambda a: a @ a, a)

    with pytest.raises(NotImplementedError, match="while loop"):
        matmul_flops(f, jnp.zeros((3, 3)))
