"""Counted work of a step against closed forms."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from cinema_jax.cinema import Cinema
from cinema_jax.devices.flops import matmul_flops
from cinema_jax.training.stages import STAGES
from cinema_jax.training.stages.flow import flow_loss
from cinema_jax.training.work import WorkCounter, dit_tokens, peak_tflops, work

WIDTH, LAYERS, TEXT, VIDEO = 32, 2, 6, 2 * 4 * 4


@pytest.fixture(scope="module")
def cinema():
    """A transformer with recomputation, and a T5 before it."""
    config = tiny_config()
    dit = dataclasses.replace(
        config.dit_model,
        num_layers=LAYERS,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=4,
        out_channels=4,
        text_embed_dim=config.t5_model.d_model,
        max_text_seq_length=TEXT,
        remat="full",
    )
    condition = dataclasses.replace(config.condition, text_tokens=TEXT)
    config = dataclasses.replace(config, condition=condition, dit_model=dit)
    t5 = dataclasses.replace(config.t5_model, vocab_size=20)
    return Cinema(config, {"dit": dit, "t5": t5, "vae": config.vae_model})


def batch(size=3, **more):
    shapes = {"latents": ((size, 2, 8, 8, 4), np.float32), "caption_tokens": ((size, TEXT), np.int32)}
    shapes |= {"index": ((size,), np.int32)} | more
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def trained(cinema, *parts):
    return [path for path in cinema.shapes if path.split("/")[0] in parts]


def test_a_trained_part_counts_three_times_and_a_frozen_one_once(cinema):
    stage = STAGES["pretrain"]
    frozen = work(stage, cinema, trained(cinema, "dit"), batch()).flops
    joint = work(stage, cinema, trained(cinema, "dit", "t5"), batch()).flops
    params = cinema.shapes

    def by_caption(params, batch):
        return cinema.caption_conditions(params, batch["caption_tokens"])

    forward_t5 = matmul_flops(cinema.encode_caption, params, batch()["caption_tokens"])
    # The backward pass of T5, and that of the transformer's projection of its features.
    projection = 2 * 3 * TEXT * WIDTH * cinema.part_configs["t5"].d_model
    assert joint - frozen == pytest.approx(2 * forward_t5 + projection, rel=0.01)
    whole = matmul_flops(
        lambda params, batch, keys: flow_loss(cinema, by_caption, "pretrain")(params, batch, keys)[0],
        params,
        batch(),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), 3)),
    )
    # What comes first has no gradient towards its input: patches, text, and the embedded time.
    assert 2.8 < (frozen - forward_t5) / (whole - forward_t5) <= 3


def test_recomputation_does_not_count(cinema):
    plain = Cinema(
        cinema.config, cinema.part_configs | {"dit": dataclasses.replace(cinema.part_configs["dit"], remat="none")}
    )
    stage, paths = STAGES["pretrain"], trained(cinema, "dit")
    assert work(stage, cinema, paths, batch()) == work(stage, plain, paths, batch())


def test_tokens_are_text_video_and_references(cinema):
    references = {"references": ((3, 2, 32, 32, 3), np.uint8)}
    assert dit_tokens(cinema, batch()) == 3 * (TEXT + VIDEO)
    assert dit_tokens(cinema, batch(**references)) == 3 * (TEXT + VIDEO + 2 * 2 * 2)
    without = batch()
    del without["latents"]
    assert dit_tokens(cinema, without) is None


def test_rates_come_once_the_shape_was_looked_at(cinema):
    counter = WorkCounter(STAGES["pretrain"], cinema, trained(cinema, "dit"))
    arrays = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in batch().items()}
    for _ in range(2):
        counter.add(arrays)
    assert counter.rates(1.0) == {}
    counter.add(arrays)
    expected = next(iter(counter._found.values())).result()
    rates = counter.rates(0.5)
    assert rates["tokens_per_second"] == 2 * expected.tokens
    assert rates["tflops_per_chip"] == pytest.approx(2e-12 * expected.flops / jax.device_count())
    assert "mfu" not in rates
    counter.close()


def test_mfu_is_of_the_chips_peak(cinema, monkeypatch):
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    counter = WorkCounter(STAGES["pretrain"], cinema, trained(cinema, "dit"))
    arrays = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in batch().items()}
    for _ in range(3):
        counter.add(arrays)
    next(iter(counter._found.values())).result()
    rates = counter.rates(1.0)
    assert rates["mfu"] == rates["tflops_per_chip"] / 197.0


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5", 459.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(kind, peak):
    assert peak_tflops(kind) == peak
