"""A small network of every family on the card and on the CPU in one process, with the same parameters and inputs.

On a CPU alone both are the same device, and the lines say how much 16 bits cost.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.record import Record, random_params
from cinema_jax.devices import sharding
from cinema_jax.experiment import parts
from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.qwen_vl.config import MLLMInputs, Qwen2VLConfig, Qwen2VLVisionConfig, Qwen25VLVisionConfig
from cinema_jax.models.qwen_vl.processing import mrope_positions, patch_grid
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.weights import rules

IMAGE = 1
# Precision of the parameters, that of products (None: JAX's default, TF32 on NVIDIA cards), and the largest difference
# over the largest value that is still this precision's.
WAYS = {
    "fp32, exact products": ("float32", "highest", 1e-4),
    "fp32": ("float32", None, 2e-2),
    "bf16": ("bfloat16", None, 0.1),
}


class Family(NamedTuple):
    """A part's config, what is called, and what it is called with."""

    part: str
    config: Any
    call: Callable[..., jax.Array]
    inputs: tuple[Any, ...]


def normal(*shape: int) -> np.ndarray:
    """Reproducible numbers."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def families() -> dict[str, Family]:
    """All of them. Heads are as large as the released networks', so that cuDNN takes them."""
    shared: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 2, "in_channels": 4, "out_channels": 4}
    shared |= {"text_embed_dim": 32, "max_text_seq_length": 15, "remat": "full"}
    cogvideo = CogVideoXConfig(**shared, time_embed_dim=32, sample_height=8, sample_width=8)
    rotary = CogVideoXConfig(
        **shared, time_embed_dim=32, sample_height=8, sample_width=8, use_rotary_positional_embeddings=True
    )
    wan = WanConfig(**shared, ffn_dim=256, freq_dim=32)
    # Two references, of which the second sample has one; times that 16 bits can hold.
    told = normal(2, 2, 8, 8, 4), normal(2, 15, 32), normal(2, 2, 8, 8, 4), np.int32([2, 1]), np.float32([0.25, 0.875])
    wan_vae = WanVAEConfig(base_dim=16, z_dim=4, num_res_blocks=1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    vae = CogVideoXVAEConfig(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=4, latent_channels=4
    )
    clip, latents = normal(1, 9, 32, 32, 3), normal(1, 3, 4, 4, 4)
    t5 = T5Config(vocab_size=64, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
    umt5 = T5Config(vocab_size=64, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2, model_type="umt5")
    words = np.int32([[*range(1, 18), 0, 0], [5, 6, 7, *[0] * 16]])
    aligner = AlignerConfig(input_dim=64, output_dim=32, num_layers=2, width=128, num_heads=2, num_latents=15)
    mllm: dict[str, Any] = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    mllm |= {"num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": (8, 12, 12), "image_token_id": IMAGE}
    vision = Qwen2VLVisionConfig(depth=2, embed_dim=64, num_heads=2)
    vision25 = Qwen25VLVisionConfig(
        depth=2, hidden_size=64, num_heads=2, intermediate_size=96, out_hidden_size=256, fullatt_block_indexes=(1,)
    )
    return {
        "CogVideoX transformer, sincos": Family("dit", cogvideo, lambda module, *x: module(*x), told),
        "CogVideoX transformer, rotary": Family("dit", rotary, lambda module, *x: module(*x), told),
        "Wan transformer": Family("dit", wan, lambda module, *x: module(*x), told),
        "Wan VAE, encode": Family("vae", wan_vae, lambda module, x: module.encode(x), (clip,)),
        "Wan VAE, decode": Family("vae", wan_vae, lambda module, x: module.decode_raw(x), (latents,)),
        "CogVideoX VAE, encode": Family("vae", vae, lambda module, x: module.encode(x), (clip,)),
        "CogVideoX VAE, decode": Family("vae", vae, lambda module, x: module.decode_raw(x), (latents,)),
        "T5": Family("t5", t5, lambda module, x: module.features(x), (words,)),
        "UMT5": Family("t5", umt5, lambda module, x: module.features(x), (words,)),
        "AlignerNet": Family("aligner", aligner, lambda module, *x: module(*x), (normal(2, 21, 64), np.int32([21, 9]))),
        "Qwen2-VL": Family("mllm", Qwen2VLConfig(vision=vision, **mllm), _read, (_pictures(vision.patch_dim),)),
        "Qwen2.5-VL": Family("mllm", Qwen2VLConfig(vision=vision25, **mllm), _read, (_pictures(vision25.patch_dim),)),
    }


def _read(module, inputs):
    return module.hidden_states(inputs)


def _pictures(size: int) -> MLLMInputs:
    """Two pictures of 4 x 6 patches among words, an odd number of tokens."""
    image = np.full(6, IMAGE)
    tokens = np.concatenate([[2, 3, 4], image, [5], image, [6, 7, 8]])
    return MLLMInputs(
        tokens=tokens[None].astype(np.int32),
        lengths=np.int32([tokens.size]),
        positions=mrope_positions(tokens == IMAGE, [(2, 3)] * 2)[None],
        patches=normal(1, 48, size),
        patch_segments=np.repeat(np.int32([1, 2]), 24)[None],
        patch_positions=np.concatenate([patch_grid(4, 6, 2)] * 2)[None],
    )


def compare(record: Record) -> None:
    """Lines for each family, forward and gradient."""
    meshes = [sharding.make_mesh(devices=jax.devices(name)[:1]) for name in ("cpu", jax.default_backend())]
    with ThreadPoolExecutor(2 if record.options.tiny else 12) as pool:
        waiting = [
            (name, {way: pool.submit(run, *places) for way, places in programs.items()})
            for name, programs in _programs(*meshes)
        ]
        for name, results in waiting:
            for way in WAYS:
                record.attempt(f"{name}, {way}", functools.partial(_errors, results["expected"], results[way], way))


def _programs(cpu: Any, card: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Traced one after the other: `run` compiles and calls them."""
    for name, family in families().items():
        graph, shapes = parts.structure(family.part, family.config)
        with jax.default_device(cpu.devices.flat[0]):
            params = {path: np.asarray(x) for path, x in random_params(shapes, jnp.float32).items()}
        programs = {"expected": (graph, family, params, cpu, "float32", "highest")}
        yield name, programs | {way: (graph, family, params, card, *how[:2]) for way, how in WAYS.items()}


def run(graph: Any, family: Family, params: Any, mesh: Any, dtype: str, products: str | None) -> dict[str, Any]:
    """The output and the gradient of its mean square, as fp32 on the host."""

    def loss(params, inputs):
        own = {path.removeprefix(f"{family.part}/"): x for path, x in params.items()}
        out = family.call(rules.build(graph, own), *inputs)
        return jnp.mean(out.astype(jnp.float32) ** 2), out

    def narrow(x):
        x = np.asarray(x)
        return jax.device_put(x.astype(jnp.dtype(dtype)) if x.dtype == np.float32 else x, sharding.replicated(mesh))

    precision = jax.default_matmul_precision(products) if products else contextlib.nullcontext()
    # The mesh says for which platform the program is traced.
    with jax.set_mesh(mesh), precision:
        arguments = jax.tree.map(narrow, (params, family.inputs))
        gradient, out = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), {"forward": out, "gradient": gradient})


def _errors(expected: Future, found: Future, way: str) -> dict[str, Any]:
    errors = {name: _error(found.result()[name], expected.result()[name]) for name in ("forward", "gradient")}
    return {"errors": errors, "within": max(errors.values()) < WAYS[way][2]}


def _error(found: Any, expected: Any) -> float:
    """The largest difference of all arrays, over their largest value: gradients that cancel to 0 say nothing alone."""
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, expected)
    return float(max(jax.tree.leaves(differences)) / max(np.abs(x).max() for x in jax.tree.leaves(expected)))
