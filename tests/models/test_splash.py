"""Splash attention, interpreted, through the dispatcher, against XLA; and what a policy keeps of either TPU kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from cinema_jax.models.attention import attention, blocks, dispatch
from cinema_jax.models.attention.splash import OUTPUT

TPUS = AbstractMesh(
    (2, 2),
    ("fsdp", "context"),
    axis_types=(AxisType.Auto,) * 2,
    abstract_device=AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
)
CASES = {
    "lengths": {"kv_lengths": [130, 57]},
    "segments": {"segments": np.stack([np.arange(130) // 50, np.arange(130) // 100])},
    "causal": {"causal": True},
    # Every query sees a key: itself.
    "all": {"causal": True, "segments": np.stack([np.arange(130) // 50] * 2), "kv_lengths": [130, 130], "scale": 0.3},
}


def inputs(queries, keys, heads, kv_heads, head_size):
    rng = np.random.default_rng(0)
    shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads)]
    return [jnp.asarray(rng.normal(size=(2, *shape, head_size)), jnp.float32) for shape in shapes]


def outputs(monkeypatch, backend, qkv, options):
    """The output and the gradients of what `backend` computes."""
    monkeypatch.setattr(dispatch, "attention_backend", lambda *args, **kwargs: backend)

    def loss(q, k, v):
        out = attention(q, k, v, **options)
        return jnp.sin(out).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return [out, *grads]


def assert_matches_xla(monkeypatch, qkv, options):
    actual, expected = (outputs(monkeypatch, backend, qkv, options) for backend in ("splash", "xla"))
    for a, b in zip(actual, expected, strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("case", CASES)
def test_masks(monkeypatch, case):
    options = {k: jnp.asarray(v) if k in ("kv_lengths", "segments") else v for k, v in CASES[case].items()}
    assert_matches_xla(monkeypatch, inputs(130, 130, 2, 1 if case == "all" else 2, 64), options)


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "kv_heads", "head_size"), [(128, 128, 4, 2, 128), (5, 200, 1, 1, 64)]
)
def test_shapes(monkeypatch, queries, keys, heads, kv_heads, head_size):
    assert_matches_xla(monkeypatch, inputs(queries, keys, heads, kv_heads, head_size), {})


def test_padded_queries_see_the_valid_keys(monkeypatch):
    qkv = inputs(130, 130, 1, 1, 64)
    lengths = jnp.array([40, 1])
    out = outputs(monkeypatch, "splash", qkv, {"kv_lengths": lengths})[0]
    short = [qkv[0], *(x[:, :40] for x in qkv[1:])]
    expected = outputs(monkeypatch, "xla", short, {"kv_lengths": lengths})[0]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(("saved", "forward"), [(("q", "k", "v", OUTPUT), 1), (("q", "k", "v"), 2)])
@pytest.mark.parametrize("kernel", ["splash", "transposed"])
def test_a_policy_that_saves_the_output_runs_the_forward_kernel_once(monkeypatch, kernel, saved, forward):
    monkeypatch.setenv(dispatch.KERNEL, kernel)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*saved))
    def block(x):
        q, k, v = (checkpoint_name(x * factor, name) for factor, name in ((2, "q"), (3, "k"), (4, "v")))
        return jnp.sin(attention(q, k, v)).sum()

    with jax.sharding.use_abstract_mesh(TPUS):
        jaxpr = jax.make_jaxpr(jax.value_and_grad(block))(jnp.ones((2, 8192, 4, 64))).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    names = sorted(name.split("_")[2 if kernel == "splash" else 1] for name in kernels(used))
    assert names == (["dkv", "dq", *["fwd"] * forward] if kernel == "splash" else ["backward", *["forward"] * forward])


def kernels(jaxpr):
    """The names of the Pallas kernels of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["jaxpr"].debug_info.func_name
        for inner in jaxprs_in_params(equation.params):
            yield from kernels(inner)


@pytest.mark.parametrize("tokens", [1024, 1506, 17776, 23552, 32760])
@pytest.mark.parametrize("kind", [*blocks.TRANSPOSED, "another"])
def test_tiles_are_whole_and_their_blocks_pad_little(kind, tokens):
    for one in blocks.tiles(kind, tokens, tokens):
        assert one.queries % one.queries_at_once == one.keys % one.keys_at_once == 0
        assert max(-tokens % one.queries, -tokens % one.keys) < max(0.04 * tokens, blocks.LANES)


@pytest.mark.parametrize("kind", [*blocks.TABLE, "another"])
@pytest.mark.parametrize("tokens", [1024, 1506, 17776, 23552])
def test_blocks_are_whole_and_pad_little(kind, tokens):
    sizes = blocks.block_sizes(kind, 64, tokens, tokens)
    padded = blocks.padded(sizes, tokens, tokens)
    assert padded[0] == padded[1] < 1.04 * tokens
    for block in (sizes.block_q, sizes.block_q_dq, sizes.block_q_dkv):
        assert padded[0] % block == 0
    for block in (sizes.block_kv, sizes.block_kv_dq, sizes.block_kv_dkv):
        assert padded[1] % block == 0
    assert sizes.block_kv % sizes.block_kv_compute == sizes.block_kv_dkv % sizes.block_kv_dkv_compute == 0
