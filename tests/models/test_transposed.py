"""Attention by transposed logits, interpreted, through the dispatcher, against XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinema_jax.models.attention import attention, blocks, dense, dispatch
from cinema_jax.models.attention import transposed as kernels

# Compiling takes longer than running here.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles in a block, and several blocks in few tokens; another number of them in each pass."""
    sizes = (blocks.Tiles(256, 128, 128, 128), blocks.Tiles(128, 256, 128, 128))
    monkeypatch.setattr(kernels, "tiles", lambda *_: sizes)
    monkeypatch.setattr(dispatch, "attention_backend", lambda *_, **__: "transposed")


def inputs(queries, keys, kv_heads=2, size=64, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(queries, 2), (keys, kv_heads), (keys, kv_heads)]
    return [jnp.asarray(rng.normal(size=(2, *shape, size)), dtype) for shape in shapes]


def outputs(attend, qkv):
    """The output and the gradients, in fp32."""

    def loss(q, k, v):
        out = attend(q, k, v)
        return jnp.sin(out.astype(jnp.float32)).sum(), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(gradient, compiler_options=QUICK)(*qkv)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def exact(qkv, lengths=None):
    """The same by XLA, in fp32."""
    scale = qkv[0].shape[-1] ** -0.5
    qkv = [x.astype(jnp.float32) for x in qkv]
    return outputs(lambda *x: dense.xla(*x, lengths, None, causal=False, scale=scale), qkv)


def errors(actual, expected):
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(actual, expected, strict=True)]


@pytest.mark.parametrize(
    ("queries", "keys", "kv_heads", "size", "lengths"),
    [(300, 300, 1, 40, [300, 140]), (130, 400, 2, 128, None)],
    ids=["odd, grouped, small heads, lengths", "cross"],
)
def test_equals_xla_forward_and_backward(queries, keys, kv_heads, size, lengths):
    qkv = inputs(queries, keys, kv_heads, size)
    lengths = None if lengths is None else jnp.array(lengths)
    assert max(errors(outputs(lambda *x: attention(*x, kv_lengths=lengths), qkv), exact(qkv, lengths))) < 5e-6


def test_16_bits_lose_no_more_than_in_xla():
    qkv = inputs(256, 256, dtype=jnp.bfloat16)
    rounded = outputs(lambda *x: dense.xla(*x, None, None, causal=False, scale=0.125), qkv)
    ours, theirs = (errors(x, exact(qkv)) for x in (outputs(attention, qkv), rounded))
    assert max(ours) < 2 * max(theirs)


def test_queries_in_turns_have_the_same_gradients(monkeypatch):
    qkv, lengths = inputs(300, 200), jnp.array([200, 60])

    def attend(*qkv):
        return attention(*qkv, kv_lengths=lengths)

    monkeypatch.setattr(kernels, "_GRADIENT_BYTES", 128 * 64 * 12)
    calls = str(jax.make_jaxpr(jax.grad(lambda *x: attend(*x).sum()))(*qkv)).count("name=transposed_backward")
    # Of 512 queries, to which the forward pass fills up 300.
    assert calls == 4
    assert max(errors(outputs(attend, qkv), exact(qkv, lengths))) < 5e-6


def test_a_sample_without_keys_gets_zeros():
    out, *grads = outputs(lambda *x: attention(*x, kv_lengths=jnp.array([0, 130])), inputs(130, 130))
    assert not out[0].any()
    assert out[1].any()
    assert all(not x[0].any() and np.isfinite(x).all() for x in grads)


def test_a_mask_of_queries_and_keys_is_refused():
    with pytest.raises(ValueError, match="no segments and no causal mask; take splash"):
        attention(*inputs(130, 130), causal=True)
