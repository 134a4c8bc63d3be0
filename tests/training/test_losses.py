"""What each stage's loss makes of the networks' outputs, against numbers by hand.

`t5` has test_t5_stage.py, and `finetune` test_wiring.py, which takes its steps by hand.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_params, tiny_config

from cinema_jax.cinema import Cinema, Conditions
from cinema_jax.config import Config
from cinema_jax.data.pipeline import Examples
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.model import MLLMInputs
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.models.wan import layers
from cinema_jax.training.stages import STAGES
from cinema_jax.training.step import Share

ROWS = 4


@pytest.fixture(scope="module")
def config() -> Config:
    """Every weight of a loss is one that shows."""
    config = tiny_config()
    return dataclasses.replace(
        config,
        vae=dataclasses.replace(config.vae, kl_weight=0.5),
        align=dataclasses.replace(config.align, mse_weight=0.7, cosine_weight=0.4),
        pretrain=dataclasses.replace(config.pretrain, references=0.6),
        flow=dataclasses.replace(config.flow, shift=2.0, time_mean=0.3, time_std=0.7, subject_weight=4.0),
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    return Run(config, tmp_path_factory.mktemp("losses"))


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3, impl="threefry2x32"), i))(jnp.arange(ROWS))


def parts_of(run, *names):
    configs = run.part_configs(names)
    params = {path: jnp.asarray(x) for name in names for path, x in random_params(name, configs[name]).items()}
    return Cinema(run.config, configs), params


def batch_of(run, stage, latents=None):
    examples = Examples(run.source("train"), run.preprocessor(), range(ROWS), latents)
    made = [STAGES[stage].example(examples, row, np.random.default_rng(row)) for row in range(ROWS)]
    return collate(made) | {"index": np.arange(ROWS, dtype=np.int32)}


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(1).standard_normal((ROWS, 2, 4, 4, 4), np.float32)


def ratios(metrics):
    return {name: float(x.ratio if isinstance(x, Share) else x) for name, x in metrics.items()}


def test_vae_is_the_error_of_a_draw_and_its_divergence_from_the_normal_distribution(run, keys):
    (cinema, params), batch = parts_of(run, "vae"), batch_of(run, "vae")
    video = jnp.asarray(batch["video"], jnp.float32) / 127.5 - 1
    shape = jax.eval_shape(cinema.encode_video, cinema.shapes, batch["video"]).shape
    noise = jnp.stack([jax.random.normal(key, shape[1:]) for key in keys])

    @jax.jit
    def both(params, batch, keys, noise):
        mean, logvar = cinema.part(params, "vae").encode_moments(video)
        decoded = cinema.part(params, "vae").decode_raw(mean + jnp.exp(logvar / 2) * noise)
        return STAGES["vae"].loss(cinema)(params, batch, keys), (mean, logvar, decoded)

    (loss, metrics), outputs = both(params, batch, keys, noise)
    mean, logvar, decoded = (np.asarray(x, np.float64) for x in outputs)
    error = np.square(decoded - video).mean()
    divergence = (0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).mean()
    assert divergence > 0.01
    np.testing.assert_allclose(loss, error + 0.5 * divergence, rtol=1e-5)
    expected = {"mse": error, "kl": divergence, "psnr": 10 * np.log10(2**2 / error)}
    assert ratios(metrics) == pytest.approx(expected, rel=1e-5)


def test_vae_computes_in_bfloat16_and_adds_up_in_fp32(run, keys, monkeypatch):
    # A third of the convolutions to compile; those tap by tap are compared in test_wan_vae.py.
    monkeypatch.setattr(layers, "causal_conv3d_by_taps", layers.causal_conv3d_native)
    (cinema, params), batch = parts_of(run, "vae"), jax.tree.map(jnp.asarray, batch_of(run, "vae"))
    narrow = Cinema(dataclasses.replace(run.config, precision="bfloat16"), cinema.part_configs)

    def all_of(cinema, params, batch, keys):
        loss, gradient = jax.value_and_grad(lambda p: STAGES["vae"].loss(cinema)(p, batch, keys)[0])(params)
        return loss, STAGES["vae"].evaluate(cinema)(params, batch, keys)[0], optax.global_norm(gradient)

    found, expected = (jax.jit(functools.partial(all_of, each))(params, batch, keys) for each in (narrow, cinema))
    assert {x.dtype for x in found} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found[:2], expected[:2], rtol=0.01)
    np.testing.assert_allclose(found[2], expected[2], rtol=0.1)


def test_mllm_is_the_cross_entropy_of_the_answers_tokens_each_from_the_state_before_it(run):
    (cinema, params), batch = parts_of(run, "mllm"), batch_of(run, "mllm")

    @jax.jit
    def both(params, batch):
        logits = cinema.part(params, "mllm").logits(MLLMInputs.from_batch(batch))
        return STAGES["mllm"].loss(cinema)(params, batch, None), logits

    (loss, metrics), logits = both(params, batch)
    logits = np.asarray(logits, np.float64)
    surprise, right = [], []
    for row, (tokens, answer) in enumerate(zip(batch["tokens"], batch["loss_mask"], strict=True)):
        for place in np.flatnonzero(answer):
            scores = logits[row, place - 1]
            surprise.append(np.log(np.exp(scores).sum()) - scores[tokens[place]])
            right.append(scores.argmax() == tokens[place])
    counts = batch["loss_mask"].sum(axis=1)
    assert len(set(counts)) > 1, "of unequal lengths"
    np.testing.assert_allclose(loss.ratio, np.mean(surprise), rtol=1e-5)
    assert ratios(metrics) == pytest.approx({"token_accuracy": np.mean(right)}, rel=1e-5)


def noisy(keys, latents):
    """A sample's time and noise, and where they carry its latents."""

    def drawn(use, shape):
        return jnp.stack([jax.random.normal(jax.random.fold_in(key, zlib.crc32(use)), shape) for key in keys])

    times = np.asarray(jax.nn.sigmoid(0.3 + 0.7 * drawn(b"flow.time", ())))
    times, noise = 2 * times / (1 + times), np.asarray(drawn(b"flow.noise", latents.shape[1:]))
    t = times.reshape(-1, 1, 1, 1, 1)
    return times, noise, (1 - t) * latents + t * noise


@pytest.mark.parametrize("shown", [True, False])
def test_pretrain_is_the_weighted_error_of_the_velocity_by_caption_and_references(run, keys, latents, shown):
    pretrain = dataclasses.replace(run.config.pretrain, references=0.6 * shown)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, pretrain=pretrain))
    (cinema, params), batch = parts_of(run, "vae", "t5", "dit"), batch_of(run, "pretrain", latents)
    times, noise, z = noisy(keys, latents)

    @jax.jit
    def both(params, batch, keys, z, times):
        text = cinema.part(params, "t5")(batch["caption_tokens"], None)
        told = cinema.without_entities(text)
        if shown:
            told = Conditions(text, cinema.encode_references(params, batch["references"]), batch["entity_lengths"])
        return STAGES["pretrain"].loss(cinema)(params, batch, keys), cinema.velocity(params, z, times, told)

    (loss, metrics), velocity = both(params, batch, keys, z, times)
    errors, weights = np.square(np.asarray(velocity) - (noise - latents)).mean(axis=-1), batch["error_weights"]
    assert weights.max() > 3
    each = (weights * errors).sum(axis=(1, 2, 3)) / weights.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, each.mean(), rtol=1e-5)
    quarters = [each[(times >= i / 4) & (times < (i + 1) / 4)] for i in range(4)]
    expected = {f"loss_t{i}": quarter.mean() if quarter.size else np.nan for i, quarter in enumerate(quarters)}
    assert ratios(metrics) == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_align_leads_to_t5s_features_of_the_caption_by_distance_and_direction(aligned):
    batch, (predicted, target), (loss, metrics), _ = aligned
    distance = np.square(predicted - target).mean()
    cosine = (predicted * target).sum(-1) / np.linalg.norm(predicted, axis=-1) / np.linalg.norm(target, axis=-1)
    np.testing.assert_allclose(loss, 0.7 * distance + 0.4 * (1 - cosine.mean()), rtol=1e-5)
    real = np.arange(target.shape[1]) < batch["caption_lengths"][:, None]
    expected = {"mse": distance, "cosine": cosine.mean()}
    expected |= {"cosine_real": cosine[real].mean(), "cosine_padding": cosine[~real].mean()}
    assert ratios(metrics) == pytest.approx(expected, rel=1e-4)


def test_align_is_held_against_the_flow_that_t5_itself_leads(aligned):
    _, _, (loss, _), (value, told, errors) = aligned
    assert value == pytest.approx(float(loss), rel=1e-5)
    # The first four times are the middles of the quarters.
    by_aligner, by_t5 = (float(errors[name][:4].mean()) for name in ("aligned", "t5"))
    expected = {"flow_aligned": by_aligner, "flow_t5": by_t5, "flow_ratio": by_aligner / by_t5}
    assert {name: float(told[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
    assert abs(by_aligner / by_t5 - 1) > 1e-3


def test_aligns_gate_is_what_is_missing_of_the_captions_worth_where_there_is_much_noise(aligned):
    *_, (_, told, errors) = aligned
    noisy = {name: float(each[2:].mean()) for name, each in errors.items()}
    assert min(abs(noisy["empty"] - noisy["t5"]), abs(noisy["aligned"] - noisy["t5"])) > 1e-4
    expected = (noisy["aligned"] - noisy["t5"]) / (noisy["empty"] - noisy["t5"])
    assert float(told["flow_gate"].ratio) == pytest.approx(expected, rel=1e-2)


@pytest.fixture(scope="module")
def aligned(run, latents):
    """A batch, both readers' features of it, the loss, and what is held out beside the errors of the flow by each."""
    (cinema, params), batch = parts_of(run, "vae", "t5", "mllm", "aligner", "dit"), batch_of(run, "align", latents)
    grid = jnp.array([0.125, 0.375, 0.625, 0.875, 0.95, 0.99])
    noise = np.stack([held_out_noise(time, latents.shape) for time in range(len(grid))])

    @jax.jit
    def outputs(params, batch):
        t5 = cinema.part(params, "t5")
        texts = {"aligned": cinema.read_prompt(params, batch), "t5": t5(batch["caption_tokens"], None)}
        end = jnp.arange(batch["caption_tokens"].shape[1]) == 0
        words = run.tokenizer("t5_tokenizer")
        nothing = jnp.where(end, words.eos_token_id, words.pad_token_id)
        texts["empty"] = t5(jnp.broadcast_to(nothing, batch["caption_tokens"].shape), None)

        def error(text):
            def at(each):
                time, noise = each
                z, t = (1 - time) * latents + time * noise, jnp.full(ROWS, time)
                velocity = cinema.velocity(params, z, t, cinema.without_entities(text))
                return jnp.square(velocity - (noise - latents)).mean()

            return jax.lax.map(at, (grid, noise))

        errors = {name: error(text) for name, text in texts.items()}
        stage = STAGES["align"]
        return texts, stage.loss(cinema)(params, batch, None), (*stage.evaluate(cinema)(params, batch, None), errors)

    texts, trained, (value, told, errors) = outputs(params, batch)
    held_out = value, told, {name: np.asarray(each, np.float64) for name, each in errors.items()}
    return batch, [np.asarray(texts[name], np.float64) for name in ("aligned", "t5")], trained, held_out


def held_out_noise(time, shape):
    """Of all samples, for one of the times."""
    key = jax.random.fold_in(jax.random.key(zlib.crc32(b"flow.evaluation"), impl="threefry2x32"), time)
    keys = [jax.random.fold_in(jax.random.fold_in(key, row), zlib.crc32(b"flow.noise")) for row in range(shape[0])]
    return np.stack([jax.random.normal(key, shape[1:]) for key in keys])
