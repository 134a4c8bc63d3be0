"""What NVIDIA GPUs will be given, as far as it shows without one: programs lowered for CUDA, with JAX's own checks."""

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from tiny import tiny_values

from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.experiment.run import Run
from cinema_jax.models import activations, layers
from cinema_jax.models.attention import attention, dense
from cinema_jax.models.wan import layers as convolutions
from cinema_jax.planning import program
from cinema_jax.sampling import programs as sampling

# What cuDNN is asked for; with a bias it is called ScaleBiasSoftmax.
FORWARD, BACKWARD = re.compile(r"fmha\w*Softmax\("), re.compile(r"fmha\w*SoftmaxBackward\(")


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that is not here, of compute capability 9.0 with cuDNN 9.10."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
    for module in (layers, convolutions, sampling):
        monkeypatch.setattr(module, "platform", lambda: "gpu")
    jax.clear_caches()
    yield
    jax.clear_caches()


def lowered(function, *arguments) -> str:
    """The program that CUDA's compiler gets."""
    return function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A tiny run's programs, by precision: a function of the stage's name, or of the sampler's step."""

    def program_of(precision: str, name: str) -> program.Program:
        values = tiny_values()
        values.precision = precision
        run = Run(parse(values), tmp_path_factory.mktemp("run"))
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        return program.train_program(run, name, mesh) if name in values.stages else sampled(run, mesh)[name]

    sampled = functools.cache(lambda run, mesh: program.sampler_programs(run, mesh))
    return program_of


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        *(("bfloat16", name) for name in ("vae", "mllm", "t5", "align", "finetune")),
        *(("bfloat16", name) for name in ("conditions", "a step of 3 branches", "decoding")),
        *(("float32", name) for name in ("finetune", "a step of 3 branches")),
    ],
)
def test_every_program_is_lowered_for_cuda_with_fused_attention_in_16_bits(programs, precision, name):
    found = programs(precision, name)
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        text = lowered(found.function, *found.arguments)
    assert bool(FORWARD.search(text)) == (precision == "bfloat16")
    trains = found.state is not None
    assert bool(BACKWARD.search(text)) == (precision == "bfloat16" and trains)


def inputs(queries: int, keys: int, kind: str) -> tuple[dict[str, jax.Array], dict]:
    """Arrays of 2 samples and 4 heads of size 8, and what is masked."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, n, 4, 8)), jnp.bfloat16) for n in (queries, keys, keys))
    options: dict = {"causal": kind == "causal", "scale": 8**-0.5}
    lengths = jnp.array([keys, 3], jnp.int32) if kind == "lengths" else None
    numbers = jnp.array([[0, 0, 1] + [1] * (queries - 3), [0, 1, 1] + [2] * (queries - 3)], jnp.int32)
    segments = (numbers, numbers) if kind == "segments" else None
    if kind == "bias":
        options["bias"] = jnp.asarray(rng.standard_normal((1, 4, queries, keys)), jnp.float32)
    return {"q": q, "k": k, "v": v}, {"lengths": lengths, "segments": segments, **options}


@pytest.mark.parametrize("kind", ["", "lengths", "causal", "segments", "bias"])
@pytest.mark.parametrize(("queries", "keys"), [(17, 17), (16, 17), (17, 16), (16, 16)])
def test_odd_numbers_of_tokens_are_lowered_and_change_nothing(monkeypatch, kind, queries, keys):
    if kind in ("causal", "segments") and queries != keys:
        pytest.skip("compares queries and keys, which must be as many")
    arrays, options = inputs(queries, keys, kind)

    def total(q, k, v):
        return (dense.cudnn(q, k, v, **options).astype(jnp.float32) ** 2).sum()

    text = lowered(jax.jit(jax.grad(total, (0, 1, 2))), *arrays.values())
    assert FORWARD.search(text)
    assert BACKWARD.search(text)
    # cuDNN is not here; JAX has the same function, of the same arguments, without it.
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **o: plain(*a, **o))
    expected = dense.xla(*(x.astype(jnp.float32) for x in arrays.values()), **options)
    found = dense.cudnn(*(x.astype(jnp.float32) for x in arrays.values()), **options)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("remat", "runs"), [("attention", 1), ("dots", 1), ("full", 2)])
def test_what_the_backward_pass_keeps_spares_it_the_attention(remat, runs):
    arrays, _ = inputs(16, 16, "")

    def block(q, k, v):
        q, k, v = (
            activations.named(x.reshape(2, 16, 32), name).reshape(x.shape)
            for x, name in zip((q, k, v), "qkv", strict=True)
        )
        return attention(q, k, v)

    def total(q, k, v):
        return jax.checkpoint(block, policy=activations.REMAT[remat])(q, k, v).astype(jnp.float32).sum()

    text = lowered(jax.jit(jax.value_and_grad(total, (0, 1, 2))), *arrays.values())
    assert len(FORWARD.findall(text)) == runs
    assert len(BACKWARD.findall(text)) == 1
