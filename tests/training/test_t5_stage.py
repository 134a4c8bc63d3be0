"""The stage that teaches T5 the language: denoising."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from cinema_jax.cinema import Cinema
from cinema_jax.data.pipeline import Examples
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.stages.t5 import t5_loss
from cinema_jax.training.state import sample_keys


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tiny_config(), tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def batch(run):
    examples = Examples(run.source("train"), run.preprocessor(), range(16))
    return collate([examples.t5(row, np.random.default_rng(row)) for row in range(16)])


def loss_of(run, batch, corruption, seed=0):
    config = dataclasses.replace(run.config, t5=dataclasses.replace(run.config.t5, corruption=corruption))
    configs, params, _ = run.load_parts(("t5",))
    cinema = Cinema(config, configs)
    keys = sample_keys(jax.random.key_data(jax.random.key(seed)), jnp.arange(len(batch["tokens"])))
    loss, metrics = t5_loss(cinema)(params, batch, keys)
    return cinema, params, (loss.ratio, metrics)


def test_its_texts_are_captions_and_prompts(run, batch):
    source, text = run.source("train"), run.preprocessor().text
    captions = [text(source.caption(row))[0] for row in range(16)]
    same = [np.array_equal(*pair) for pair in zip(batch["tokens"], captions, strict=True)]
    assert 0 < sum(same) < 16


def test_without_corruption_the_loss_is_the_cross_entropy_of_the_real_tokens(run, batch):
    cinema, params, (loss, _) = loss_of(run, batch, 1e-9)
    features = np.asarray(cinema.encode_caption(params, jnp.asarray(batch["tokens"])))
    logits = features @ np.asarray(params["t5/token_embedding"]).T / features.shape[-1] ** 0.5
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    total, count = 0.0, 0
    for tokens, length, scores in zip(batch["tokens"], batch["lengths"], logits, strict=True):
        total -= sum(scores[i, tokens[i]] for i in range(length))
        count += length
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)


def test_words_are_replaced_by_the_keys_alone(run, batch):
    _, _, (clean, _) = loss_of(run, batch, 1e-9)
    _, _, (first, metrics) = loss_of(run, batch, 0.5)
    _, _, (again, _) = loss_of(run, batch, 0.5)
    _, _, (other, _) = loss_of(run, batch, 0.5, seed=1)
    assert first == again
    assert len({float(clean), float(first), float(other)}) == 3
    # Untrained features are nearest to the word that was put in.
    assert metrics["corrupted_accuracy"].ratio < 0.2
