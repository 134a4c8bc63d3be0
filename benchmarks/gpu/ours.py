"""How fast cinema_jax is on the card: transformers, the VAE, a guided step and a train step."""

import dataclasses
import functools
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.record import Record, median, random_params
from benchmarks.gpu.shapes import latents, named, transformer_config, vae_config
from cinema_jax.cinema import Cinema
from cinema_jax.config import default, parse
from cinema_jax.devices import sharding
from cinema_jax.experiment.run import Run
from cinema_jax.models.attention import attention_backend
from cinema_jax.planning import program
from cinema_jax.training.work import products
from configs import cogvideox_2b, demo


def cinema_of(parts: Mapping[str, Any], **flow: Any) -> Cinema:
    """Networks that compute in bf16."""
    values = default()
    values.precision = "bfloat16"
    values.flow.update(flow)
    return Cinema(parse(values), parts)


def memory(compiled: Any) -> dict[str, Any]:
    """GiB that a program needs as its compiler says, and the most that this process ever held on the device, where
    JAX says it: not on CPUs."""
    needs = compiled.memory_analysis()
    total = needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes
    found = {"program_gib": (total - needs.alias_size_in_bytes) / 2**30}
    held = jax.devices()[0].memory_stats() or {}
    return found | ({"peak_gib": held["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in held else {})


def timed(function: Any, *arguments: Any) -> tuple[float, dict[str, Any]]:
    """Seconds of a call, and what else is known of the program."""
    began = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    compiling = time.perf_counter() - began
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(compiled(*arguments)))
    seconds = median(lambda: compiled(*arguments), jax.block_until_ready)
    return seconds, {"compiling": compiling, "finite": finite, **memory(compiled)}


def transformer(record: Record) -> None:
    """The velocity, and the gradient of a loss on it with `remat` full, at each depth asked for."""
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        for layers in record.options.layers:
            config = transformer_config(record.part, layers, record.options.tiny)
            for what, measure in (("forward", _velocity), ("forward and backward", _gradient)):
                record.attempt(named(record.part, config, what), functools.partial(measure, record, config))
                gc.collect()


def _inputs(config: Any, tiny: bool) -> tuple[jax.Array, jax.Array]:
    text = 1, config.max_text_seq_length, config.text_embed_dim
    return tuple(
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate((latents(tiny), text))
    )


def velocity_of(config: Any) -> tuple[Cinema, Callable]:
    """Of a transformer, as a function of its parameters, a noisy video and text."""
    cinema = cinema_of({"dit": config})

    def velocity(params, video, text):
        return cinema.velocity(params, video, jnp.full(1, 0.7), cinema.without_entities(text))

    return cinema, velocity


def flops_of(config: Any, tiny: bool) -> int:
    """Of the products of a forward pass. A backward pass needs twice as many; what it computes again is not counted."""
    cinema, velocity = velocity_of(dataclasses.replace(config, remat="none"))
    return products(velocity, (cinema.shapes, *jax.eval_shape(lambda: _inputs(config, tiny))))


def _velocity(record: Record, config: Any) -> dict[str, Any]:
    cinema, velocity = velocity_of(config)
    arguments = random_params(cinema.shapes, jnp.bfloat16), *_inputs(config, record.options.tiny)
    seconds, known = timed(jax.jit(velocity), *arguments)
    return _speed(record, config, seconds, 1) | known


def _gradient(record: Record, config: Any) -> dict[str, Any]:
    cinema, velocity = velocity_of(config)

    def loss(params, video, text):
        return jnp.mean(velocity(params, video, text).astype(jnp.float32) ** 2)

    arguments = random_params(cinema.shapes, jnp.bfloat16), *_inputs(config, record.options.tiny)
    seconds, known = timed(jax.jit(jax.grad(loss)), *arguments)
    return _speed(record, config, seconds, 3) | known


def _speed(record: Record, config: Any, seconds: float, passes: int) -> dict[str, Any]:
    tokens = config.tokens(latents(record.options.tiny)[1:], None)
    head = jax.ShapeDtypeStruct((1, tokens, config.num_attention_heads, config.attention_head_dim), jnp.bfloat16)
    rates = record.rates(seconds, passes * flops_of(config, record.options.tiny), tokens)
    return {"library": "cinema_jax", "attention": attention_backend(head, head), **rates}


def vae(record: Record) -> None:
    """CogVideoX' VAE decodes one video."""
    config = vae_config(record.options.tiny)
    for what, tiled in (("in tiles", True), ("whole", False)):
        cinema = cinema_of({"vae": config}, tiled_decoding=tiled)
        record.attempt(f"decode, {what}", functools.partial(_decoded, record, cinema))
        gc.collect()


def _decoded(record: Record, cinema: Cinema) -> dict[str, Any]:
    z = jax.random.normal(jax.random.key(1), latents(record.options.tiny), jnp.bfloat16)
    arguments = random_params(cinema.shapes, jnp.bfloat16), z
    seconds, known = timed(jax.jit(cinema.decode_video), *arguments)
    return {"library": "cinema_jax", **record.rates(seconds, products(cinema.decode_video, arguments)), **known}


def real_run(tiny: bool, folder: str, **dit: Any) -> Run:
    """CogVideoX-2b with Qwen2-VL-2B as its config trains it, one example a step, none of its weights read."""
    values = demo.get_config("smoke") if tiny else cogvideox_2b.get_config()
    values.dit_model.update(dit)
    values.precision = "bfloat16"
    values.finetune.batch_size = values.finetune.microbatches = 1
    return Run(parse(values), Path(folder))


def filled(tree: Any) -> Any:
    """Arrays in place of shapes: halves, and zeros of whole numbers, which take no other time than real ones."""
    places = jax.tree.map(lambda leaf: leaf.sharding, tree)

    def make() -> Any:
        return jax.tree.map(
            lambda x: jnp.full(x.shape, 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype), tree
        )

    return jax.jit(make, out_shardings=places)()


def guided(record: Record) -> None:
    """A step of sampling with all branches of guidance, references among the conditions."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        found = program.sampler_programs(real_run(record.options.tiny, folder), mesh)
        for name in (name for name in found if name.startswith("a step of")):
            record.attempt(name, functools.partial(_step_of_sampling, record, found[name]))


def _step_of_sampling(record: Record, step: program.Program) -> dict[str, Any]:
    params, *others = step.arguments
    arguments = random_params(params, jnp.bfloat16), *filled(others)
    seconds, known = timed(step.function, *arguments)
    return {"library": "cinema_jax", **record.rates(seconds, step.flops()), **known}


def step(record: Record) -> None:
    """A whole train step of finetune: the frozen networks read the example, AdamW in fp32, the average."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        record.attempt("finetune, batch of 1", functools.partial(_train_step, record, folder, mesh))


def _train_step(record: Record, folder: str, mesh: Any) -> dict[str, Any]:
    found = program.train_program(real_run(record.options.tiny, folder), "finetune", mesh)
    plain = program.train_program(real_run(record.options.tiny, folder, remat="none"), "finetune", mesh)
    abstract, frozen, batch = found.arguments
    began = time.perf_counter()
    compiled = found.function.lower(*found.arguments).compile()
    compiling = time.perf_counter() - began
    state = filled(abstract)
    state = dataclasses.replace(state, params=random_params(abstract.params, jnp.float32))
    rest = random_params(frozen, jnp.bfloat16), filled(batch)

    def steps() -> Iterator[Any]:
        nonlocal state
        while True:
            # It consumes the state before.
            state, metrics = compiled(state, *rest)
            yield metrics

    running = steps()
    jax.block_until_ready(next(running))
    seconds = median(lambda: next(running), jax.block_until_ready)
    return {"library": "cinema_jax", **record.rates(seconds, plain.flops()), "compiling": compiling, **memory(compiled)}
