"""Attention whose tokens are split over the mesh's `context` axis, against the same without a mesh."""

import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from tiny import process_environment

from cinema_jax.models.attention import attention, context_exchange, mesh

# Every case: the sizes of the mesh, what is exchanged, heads of queries and keys, the backend, and options.
CASES = {
    "context 2": ({"fsdp": 2, "context": 2}, "ulysses", 4, 4, "xla", ()),
    "rows that do not divide": ({"data": 4, "context": 2}, "ulysses", 4, 4, "xla", ("kv_lengths",)),
    "lengths": ({"slice": 2, "context": 4}, "ulysses", 4, 4, "xla_heads", ("kv_lengths",)),
    "tensor": ({"context": 2, "tensor": 2}, "ulysses", 4, 4, "xla", ("kv_lengths", "segments")),
    "zero heads": ({"context": 4, "tensor": 2}, "ulysses", 14, 14, "xla", ("kv_lengths",)),
    "zero heads on tensor": ({"context": 2, "tensor": 2}, "ulysses", 15, 15, "xla", ()),
    "grouped queries": ({"context": 2, "tensor": 2}, "ulysses", 8, 4, "xla", ("causal",)),
    "grouped queries that do not divide": ({"context": 4}, "ulysses", 4, 2, "xla", ("causal",)),
    "gathered": ({"context": 4, "tensor": 2}, "gather", 2, 2, "xla", ("kv_lengths", "segments")),
    "gathered groups": ({"fsdp": 2, "context": 4}, "gather", 6, 3, "xla_heads", ("kv_lengths",)),
    "causal and not exchanged": ({"context": 4}, None, 2, 2, "xla", ("causal",)),
    "splash": ({"fsdp": 2, "context": 2}, "ulysses", 2, 2, "splash", ("kv_lengths", "segments")),
    "splash, gathered": ({"fsdp": 2, "context": 4}, "gather", 2, 1, "splash", ("kv_lengths",)),
    "transposed": ({"fsdp": 2, "context": 2}, "ulysses", 2, 2, "transposed", ("kv_lengths",)),
    "few keys": ({"fsdp": 2, "context": 2, "tensor": 2}, "own", 4, 4, "xla", ("few keys",)),
    "few keys, lengths": ({"context": 4, "tensor": 2}, "own", 3, 3, "xla", ("few keys", "kv_lengths")),
    "few keys, splash": ({"fsdp": 2, "context": 4}, "own", 2, 2, "splash", ("few keys", "kv_lengths")),
    "few keys, transposed": ({"fsdp": 2, "context": 4}, "own", 2, 2, "transposed", ("few keys", "kv_lengths")),
    "splash, without exchange": ({"fsdp": 2, "tensor": 2}, None, 3, 3, "splash", ("causal",)),
}


def values_and_gradients(heads, kv_heads, names):
    tokens, head_size, keys = 32, 8, 12 if "few keys" in names else 32
    rng = np.random.default_rng(0)
    sizes = ((tokens, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (jnp.asarray(rng.normal(size=(2, *size, head_size)), jnp.float32) for size in sizes)
    masks = {
        "kv_lengths": jnp.array([keys, 11]),
        "segments": jnp.stack([jnp.arange(32) // 20, jnp.arange(32) // 40]),
        "causal": True,
    }
    options = {name: masks[name] for name in names if name != "few keys"}

    def loss(q, k, v):
        out = attention(q, k, v, **options)
        return jnp.sin(out).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x) for x in (out, *gradients)]


def run_all_cases():
    """In a process with 8 devices: for every case what was exchanged, and the greatest relative errors."""
    from cinema_jax.models.attention import dispatch

    mesh.EXCHANGE_TOKENS = 32
    report = {}
    for name, (sizes, _, heads, kv_heads, backend, options) in CASES.items():
        dispatch.attention_backend = lambda *args, **kwargs: "xla"
        expected = values_and_gradients(heads, kv_heads, options)
        dispatch.attention_backend = lambda *args, backend=backend, **kwargs: backend
        count = int(np.prod(list(sizes.values())))
        axes = jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[:count]
        )
        with jax.set_mesh(axes):
            q, k = jnp.zeros((2, 32, heads, 8)), jnp.zeros((2, 12 if "few keys" in options else 32, kv_heads, 8))
            way = mesh.exchange(q, k, causal="causal" in options, bias=False)
            actual = values_and_gradients(heads, kv_heads, options)
        errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(actual, expected, strict=True)]
        report[name] = {"way": way, "error": max(errors)}
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report():
    environment = process_environment(devices=8)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_equals_one_device_forward_and_backward(report, case):
    assert report[case]["way"] == CASES[case][1]
    assert report[case]["error"] < 2e-5


@pytest.mark.parametrize(
    ("heads", "context", "tensor", "way"),
    [(48, 4, 1, "ulysses"), (30, 4, 1, "ulysses"), (30, 4, 2, "ulysses"), (12, 8, 1, "gather"), (2, 4, 1, "gather")],
)
def test_heads_are_exchanged_unless_many_would_be_zero(heads, context, tensor, way):
    assert context_exchange(heads, context, tensor) == way


def test_the_exchange_is_logged_once(caplog):
    with caplog.at_level(logging.INFO):
        context_exchange(62, 8, 1)
        context_exchange(62, 8, 1)
    assert caplog.messages == ["attention with 62 heads over context 8 x tensor 1: exchanged as 64 heads"]


def exchanged(queries, keys=None, heads=8, **options):
    q, k = (jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.bfloat16) for tokens in (queries, keys or queries))
    axes = AbstractMesh((1, 4), ("fsdp", "context"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(axes):
        return mesh.exchange(q, k, **{"causal": False, "bias": False, **options})


def test_only_long_self_attention_is_exchanged():
    assert exchanged(8192) == "ulysses"
    assert exchanged(8192, causal=True) == "ulysses"
    assert exchanged(8192, heads=2) == "gather"
    assert exchanged(8192, heads=2, causal=True) is None
    assert exchanged(8192, heads=1) is None
    assert exchanged(8192, bias=True) is None
    assert exchanged(226, 8192) is None
    assert exchanged(8192, 512) == "own"
    assert exchanged(2048, 512) is None
    assert exchanged(1023) is None


def test_tokens_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="8191 tokens; they must be a multiple of the mesh's context 4"):
        exchanged(8191)


if __name__ == "__main__":
    run_all_cases()
