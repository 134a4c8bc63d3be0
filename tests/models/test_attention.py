"""Every backend this machine can run, through the dispatcher, against PyTorch."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import TPU_ENVIRONMENT, process_environment

from cinema_jax.errors import InputError
from cinema_jax.models.attention import attention, attention_backend, dispatch

# Compiling takes longer than running here.
QUICK = {"xla_backend_optimization_level": 0}
# Below and above the size from which a CPU goes head by head.
SIZES = {"xla": 24, "xla_heads": 387}


def inputs(tokens, heads=4, kv_heads=4, head_size=16, batch=2, kv_tokens=None):
    rng = np.random.default_rng(0)
    shapes = [(tokens, heads), (kv_tokens or tokens, kv_heads), (kv_tokens or tokens, kv_heads)]
    return [jnp.asarray(rng.normal(size=(batch, *shape, head_size)), jnp.float32) for shape in shapes]


def torch_attention(q, k, v, mask=None, bias=None, scale=None):
    """`mask` and `bias` broadcast to (B, N, S, S2)."""
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_() for x in (q, k, v))
    total = torch.zeros(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if bias is not None:
        total = total + torch.tensor(bias)
    if mask is not None:
        total = total.masked_fill(~torch.tensor(np.broadcast_to(mask, total.shape).copy()), float("-inf"))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=total, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    torch.sin(out).sum().backward()
    return [x.transpose(1, 2).detach().numpy() for x in (out, q.grad, k.grad, v.grad)]


def ours(q, k, v, **options):
    def loss(q, k, v):
        out = attention(q, k, v, **options)
        return jnp.sin(out).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICK)(
        q, k, v
    )
    return [out, *grads]


def assert_close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert np.abs(np.asarray(a) - b).max() < 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("backend", SIZES)
@pytest.mark.parametrize("case", ["plain", "lengths", "segments", "causal", "all", "grouped", "scale"])
def test_matches_torch_forward_and_backward(backend, case):
    tokens = SIZES[backend]
    q, k, v = inputs(tokens, kv_heads=2 if case in ("grouped", "all") else 4)
    assert attention_backend(q, k, platform="cpu") == backend
    options, mask = {}, np.ones((2, 1, tokens, tokens), bool)
    if case in ("lengths", "all"):
        lengths = np.array([tokens, tokens - 5])
        options["kv_lengths"] = jnp.asarray(lengths)
        mask = mask & (np.arange(tokens) < lengths[:, None])[:, None, None]
    if case in ("segments", "all"):
        segments = np.stack([np.arange(tokens) // 20, np.arange(tokens) // 40])
        options["segments"] = jnp.asarray(segments)
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    if case in ("causal", "all"):
        options["causal"] = True
        mask = mask & np.tril(np.ones((tokens, tokens), bool))
    if case == "all":
        # Every query must see a key, or there is nothing to compare: PyTorch answers NaN there.
        options["kv_lengths"] = jnp.array([tokens, tokens])
        mask = np.tril(np.ones((tokens, tokens), bool)) & (segments[:, None, :, None] == segments[:, None, None, :])
    if case == "scale":
        options["scale"] = 0.3
    assert_close(ours(q, k, v, **options), torch_attention(q, k, v, mask, scale=options.get("scale")))


@pytest.mark.parametrize(
    ("head_size", "tokens", "case"),
    [(64, 130, "lengths"), (128, 256, "plain"), (80, 200, "segments"), (64, 129, "causal"), (128, 70, "grouped")],
)
def test_splash_matches_torch_forward_and_backward(monkeypatch, head_size, tokens, case):
    """The TPU's kernels, interpreted."""
    monkeypatch.setattr(dispatch, "attention_backend", lambda *_, **__: "splash")
    q, k, v = inputs(tokens, heads=2, kv_heads=1 if case == "grouped" else 2, head_size=head_size)
    options, mask = {}, np.ones((2, 1, tokens, tokens), bool)
    if case == "lengths":
        options["kv_lengths"] = jnp.array([tokens, tokens - 7])
        mask = (np.arange(tokens) < np.array([[tokens], [tokens - 7]]))[:, None, None]
    if case == "segments":
        segments = np.stack([np.arange(tokens) // 50, np.arange(tokens) // 90])
        options["segments"] = jnp.asarray(segments)
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    if case == "causal":
        options["causal"] = True
        mask = mask & np.tril(np.ones((tokens, tokens), bool))
    actual, expected = ours(q, k, v, **options), torch_attention(q, k, v, mask)
    for a, b in zip(actual, expected, strict=True):
        assert np.abs(np.asarray(a) - b).max() < 1e-4 * np.abs(b).max()


FOR_A_TPU = """
import re
import jax, jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import topologies
from cinema_jax.devices import sharding
from cinema_jax.models.activations import REMAT
from cinema_jax.models.attention import attention
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = sharding.make_mesh(data=1, fsdp=4, devices=devices)
x = jax.ShapeDtypeStruct((4, 1024, 2, 64), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
def block(*qkv):
    q, k, v = (checkpoint_name(x, name) for x, name in zip(qkv, "qkv"))
    return jnp.sin(checkpoint_name(attention(q, k, v), "attention_output")).sum()
with jax.set_mesh(mesh):
    for policy, forward in (("full", 2), ("attention", 1)):
        step = jax.jit(jax.value_and_grad(jax.checkpoint(block, policy=REMAT[policy]), (0, 1, 2)))
        kernels = re.findall(r"%(transposed_[a-z]+)[\\w.]* = ", step.lower(x, x, x).compile().as_text())
        assert sorted(kernels) == ["transposed_backward"] + forward * ["transposed_forward"], kernels
"""


def test_a_policy_that_saves_what_attention_wrote_does_not_run_its_kernel_again():
    """In the program that a TPU would run."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu (pip install libtpu)")
    environment = process_environment() | TPU_ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", FOR_A_TPU], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np, logging
from cinema_jax.devices import sharding
from cinema_jax.models.attention import attention, context_exchange, mesh as exchanges
exchanges.EXCHANGE_TOKENS = 16
rng = np.random.default_rng(0)
def inputs(heads, kv_heads):
    return [jnp.asarray(rng.normal(size=(2, 32, n, 8)), jnp.float32) for n in (heads, kv_heads, kv_heads)]
def both(options, *x):
    loss = lambda *x: (lambda out: (jnp.sin(out).sum(), out))(attention(*x, **options))
    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*x)
    return [np.asarray(y) for y in (out, *grads)]
for axes, heads, kv_heads, way in (
    ({"context": 4, "data": 2}, 4, 4, "ulysses"),
    ({"context": 2, "tensor": 2, "data": 2}, 4, 2, "ulysses"),
    ({"context": 4, "data": 2}, 15, 15, "ulysses"),
    ({"context": 4, "data": 2}, 3, 3, "gather"),
    ({"context": 2, "data": 4}, 2, 1, "ulysses"),
):
    x = inputs(heads, kv_heads)
    segments = jnp.asarray(np.repeat([[0, 1], [1, 1]], 16, axis=1))
    for options in ({}, {"kv_lengths": jnp.array([32, 19])}, {"segments": segments}):
        alone = both(options, *x)
        with jax.set_mesh(sharding.make_mesh(**axes)):
            assert context_exchange(heads, axes["context"], axes.get("tensor", 1)) == way
            text = str(jax.make_jaxpr(lambda *x: attention(*x, **options))(*x))
            assert ("all_to_all" in text) == (way == "ulysses") and ("all_gather" in text) == (way == "gather"), text
            for a, b in zip(both(options, *x), alone, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
with jax.set_mesh(sharding.make_mesh(context=8, data=1)):
    try:
        attention(*(x[:, :20] for x in inputs(8, 8)))
    except ValueError as error:
        assert "20 tokens" in str(error)
    else:
        raise AssertionError("20 tokens over 8 devices")
"""


def test_tokens_exchanged_over_a_mesh_give_the_same_forward_and_backward():
    environment = process_environment(devices=8)
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("tokens", SIZES.values())
@pytest.mark.parametrize("batch", [1, 2])
def test_bias_is_added_to_the_scaled_logits(tokens, batch):
    q, k, v = inputs(tokens)
    bias = np.random.default_rng(1).normal(size=(batch, 4, tokens, tokens)).astype(np.float32)
    assert_close(ours(q, k, v, bias=jnp.asarray(bias)), torch_attention(q, k, v, bias=bias))


@pytest.mark.parametrize("kv_tokens", [7, 300])
def test_cross_attention(kv_tokens):
    q, k, v = inputs(65, kv_tokens=kv_tokens)
    lengths = np.array([kv_tokens, 3])
    mask = (np.arange(kv_tokens) < lengths[:, None])[:, None, None]
    assert_close(ours(q, k, v, kv_lengths=jnp.asarray(lengths)), torch_attention(q, k, v, mask))


@pytest.mark.parametrize("backend", SIZES)
def test_16_bit_inputs_lose_only_their_own_precision(backend):
    q, k, v = inputs(SIZES[backend])
    exact = attention(q, k, v)
    rounded = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(exact - rounded.astype(jnp.float32)).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "head_size", "bias", "backend"),
    [
        ("gpu", jnp.bfloat16, 4096, 64, False, "cudnn"),
        ("gpu", jnp.float16, 4096, 128, True, "cudnn"),
        ("gpu", jnp.float32, 4096, 64, False, "xla"),
        ("gpu", jnp.bfloat16, 4096, 256, False, "xla"),
        ("gpu", jnp.bfloat16, 4096, 76, False, "xla"),
        ("cpu", jnp.float32, 1506, 64, False, "xla_heads"),
        ("cpu", jnp.float32, 1506, 64, True, "xla"),
        ("cpu", jnp.float32, 32, 64, False, "xla"),
        ("tpu", jnp.bfloat16, 4096, 64, False, "splash"),
        ("tpu", jnp.bfloat16, 4096, 80, False, "splash"),
        ("tpu", jnp.bfloat16, 4096, 256, False, "xla"),
        ("tpu", jnp.bfloat16, 4096, 64, True, "xla"),
        ("tpu", jnp.bfloat16, 226, 64, False, "xla"),
    ],
)
def test_the_backend_is_chosen_by_platform_type_and_shape(platform, dtype, tokens, head_size, bias, backend):
    x = jax.ShapeDtypeStruct((1, tokens, 4, head_size), dtype)
    assert attention_backend(x, x, bias=bias, platform=platform) == backend


@pytest.mark.parametrize(
    ("kind", "masked", "asked", "backend"),
    [
        ("TPU v5", False, None, "transposed"),
        ("TPU v5 lite", False, "transposed", "transposed"),
        ("TPU v6 lite", False, "splash", "splash"),
        ("TPU v6 lite", True, None, "splash"),
        ("TPU v4", False, "transposed", "splash"),
    ],
)
def test_the_kernel_of_a_tpu_is_chosen_by_its_kind_the_mask_and_the_environment(
    monkeypatch, kind, masked, asked, backend
):
    if asked:
        monkeypatch.setenv(dispatch.KERNEL, asked)
    x = jax.ShapeDtypeStruct((1, 4096, 4, 64), jnp.bfloat16)
    assert attention_backend(x, x, masked=masked, platform="tpu", kind=kind) == backend


def test_another_kernel_than_the_two_for_tpus_is_refused(monkeypatch):
    monkeypatch.setenv(dispatch.KERNEL, "flash")
    x = jax.ShapeDtypeStruct((1, 4096, 4, 64), jnp.bfloat16)
    with pytest.raises(InputError, match="CINEMA_TPU_ATTENTION is 'flash'; accepted is transposed or splash"):
        attention_backend(x, x, platform="tpu", kind="TPU v5")


@pytest.mark.parametrize(
    ("queries", "keys", "backend"), [(32760, 512, "splash"), (32760, 64, "xla"), (2048, 512, "xla"), (226, 8192, "xla")]
)
def test_many_queries_to_some_keys_are_fused_on_tpus(queries, keys, backend):
    q, k = (jax.ShapeDtypeStruct((1, tokens, 4, 128), jnp.bfloat16) for tokens in (queries, keys))
    assert attention_backend(q, k, platform="tpu") == backend


def test_heads_that_do_not_divide_are_refused():
    q, k, v = inputs(8, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="q has 4 heads; it must be a multiple of the 3 heads of k"):
        attention(q, k, v)


def test_causal_attention_to_another_number_of_keys_is_refused():
    q, k, v = inputs(8, kv_tokens=9)
    with pytest.raises(ValueError, match="8 queries and 9 keys"):
        attention(q, k, v, causal=True)
