"""Every backend this machine can run, through the dispatcher, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cinema_jax.models.attention import attention, attention_backend

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
        ("tpu", jnp.float32, 1024, 128, False, "splash"),
        ("tpu", jnp.bfloat16, 4096, 80, False, "xla"),
        ("tpu", jnp.bfloat16, 4096, 64, True, "xla"),
        ("tpu", jnp.bfloat16, 226, 64, False, "xla"),
    ],
)
def test_the_backend_is_chosen_by_platform_type_and_shape(platform, dtype, tokens, head_size, bias, backend):
    x = jax.ShapeDtypeStruct((1, tokens, 4, head_size), dtype)
    assert attention_backend(x, x, bias=bias, platform=platform) == backend


def test_heads_that_do_not_divide_are_refused():
    q, k, v = inputs(8, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="q has 4 heads; it must be a multiple of the 3 heads of k"):
        attention(q, k, v)


def test_causal_attention_to_another_number_of_keys_is_refused():
    q, k, v = inputs(8, kv_tokens=9)
    with pytest.raises(ValueError, match="8 queries and 9 keys"):
        attention(q, k, v, causal=True)
