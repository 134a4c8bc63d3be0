"""The same networks in diffusers, on the same card: PyTorch's SDPA, as it is and compiled.

Not more than one of the two libraries runs in a process: JAX and PyTorch would share the card's memory.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from benchmarks.gpu.ours import cinema_of, flops_of
from benchmarks.gpu.record import Record, median
from benchmarks.gpu.shapes import latents, named, transformer_config, vae_config
from cinema_jax.models.cogvideox import vae_weights
from cinema_jax.models.cogvideox import weights as cogvideox_weights
from cinema_jax.models.wan import transformer_weights as wan_weights
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.training.work import products


def device(record: Record) -> str:
    """Where PyTorch computes."""
    if torch.cuda.is_available():
        return "cuda"
    if not record.options.tiny:
        raise SystemExit("PyTorch finds no GPU here; --tiny needs none")
    return "cpu"


def drawn(kind: type, values: dict[str, Any], where: str) -> torch.nn.Module:
    """A network with the random weights that it begins with, made on the device; its tables of positions stay fp32."""
    with torch.device(where):
        model = kind.from_config({name: x for name, x in values.items() if not name.startswith("_")})
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def measured(record: Record, run: Callable[[], Any], item: str, library: str, flops: int, tokens: int | None) -> None:
    """A line with the speed, and how many times as fast the same item of ours was, if it ran before."""

    def wait(_: Any = None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def measure() -> dict[str, Any]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        wait(run())
        seconds = median(run, wait)
        peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}
        ours = [line["seconds"] for line in record.earlier(item=item, library="cinema_jax") if "seconds" in line]
        faster = {"cinema_jax_is_faster": seconds / ours[-1]} if ours else {}
        return {"library": library, **record.rates(seconds, flops, tokens), **peak, **faster}

    record.attempt(item, measure)


def transformer(record: Record) -> None:
    """Forward, and with backward and checkpointed activations, at each depth asked for; then compiled."""
    tiny, where = record.options.tiny, device(record)
    for layers in record.options.layers:
        config = transformer_config(record.part, layers, tiny)
        model, call = _wan(config, tiny, where) if isinstance(config, WanConfig) else _cogvideox(config, tiny, where)
        tokens, flops = config.tokens(latents(tiny)[1:], None), flops_of(config, tiny)
        for library in ("diffusers", "diffusers, compiled"):
            if library.endswith("compiled"):
                # Block by block, which takes as long for many as for one.
                for block in getattr(model, "transformer_blocks", None) or model.blocks:
                    block.compile()
            for what, run, passes in (("forward", _forward, 1), ("forward and backward", _both, 3)):
                item, once = named(record.part, config, what), functools.partial(run, model, call)
                measured(record, once, item, library, passes * flops, tokens)
        del model, call
        torch.cuda.empty_cache()


def _forward(model: torch.nn.Module, call: Callable) -> None:
    model.eval()
    with torch.no_grad():
        call()


def _both(model: torch.nn.Module, call: Callable) -> None:
    model.train()
    model.enable_gradient_checkpointing()
    model.zero_grad(set_to_none=True)
    call().float().square().mean().backward()


def _cogvideox(config: Any, tiny: bool, where: str) -> tuple[torch.nn.Module, Callable]:
    model = drawn(CogVideoXTransformer3DModel, cogvideox_weights.config_to_hf(config), where)
    _, frames, height, width, channels = latents(tiny)
    random = functools.partial(torch.randn, dtype=torch.bfloat16, device=where)
    video, text = (
        random(1, frames, channels, height, width),
        random(1, config.max_text_seq_length, config.text_embed_dim),
    )
    time, rotary = torch.tensor([700], device=where), None
    if config.use_rotary_positional_embeddings:
        grid = height // 2, width // 2
        rotary = get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), grid), grid, frames, device=where)
    return model, lambda: model(video, text, time, image_rotary_emb=rotary, return_dict=False)[0]


def _wan(config: WanConfig, tiny: bool, where: str) -> tuple[torch.nn.Module, Callable]:
    model = drawn(WanTransformer3DModel, wan_weights.config_to_hf(config), where)
    _, frames, height, width, channels = latents(tiny)
    random = functools.partial(torch.randn, dtype=torch.bfloat16, device=where)
    video, text = (
        random(1, channels, frames, height, width),
        random(1, config.max_text_seq_length, config.text_embed_dim),
    )
    time = torch.tensor([700], device=where)
    return model, lambda: model(video, time, text, return_dict=False)[0]


def vae(record: Record) -> None:
    """CogVideoX' VAE decodes one video."""
    tiny, where = record.options.tiny, device(record)
    config = vae_config(tiny)
    model = drawn(AutoencoderKLCogVideoX, vae_weights.config_to_hf(config), where).eval()
    _, frames, height, width, channels = latents(tiny)
    z = torch.randn(1, channels, frames, height, width, dtype=torch.bfloat16, device=where)

    @torch.no_grad()
    def decode() -> None:
        model.decode(z, return_dict=False)

    for what, tiled in (("in tiles", True), ("whole", False)):
        model.enable_tiling() if tiled else model.disable_tiling()
        cinema = cinema_of({"vae": config}, tiled_decoding=tiled)
        flops = products(cinema.decode_video, (cinema.shapes, jax.ShapeDtypeStruct(latents(tiny), jnp.bfloat16)))
        measured(record, decode, f"decode, {what}", "diffusers", flops, None)
