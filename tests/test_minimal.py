"""examples/train_minimal.py, at tiny sizes: it runs to its end, and its loss and sampler are the library's."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_run

from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.training.stages.flow import flow_errors

FILE = Path(__file__).parents[1] / "examples/train_minimal.py"


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("train_minimal", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_sampler(random_run(tmp_path_factory.mktemp("minimal")))


def test_both_stages_train_and_a_video_is_written(minimal, loaded, tmp_path, monkeypatch, capsys):
    run, _ = loaded
    output = tmp_path / "out.mp4"
    monkeypatch.setattr(minimal, "PRETRAINED", run.workdir)
    losses = []
    monkeypatch.setattr(minimal.tqdm, "set_postfix", lambda self, loss: losses.append(float(loss)))
    minimal.main(["--align_steps=3", "--finetune_steps=3", "--batch=2", f"--output={output}"])
    assert output.is_file()
    assert f"{output}: the " in capsys.readouterr().out
    assert len(losses) == 6
    assert losses[2] < losses[0]


def test_its_video_is_that_of_the_library(minimal, loaded):
    run, sampler = loaded
    example = run.source("test").conditions(0, np.random.default_rng(0))
    settings = sampler.settings(solver="euler", spacing="uniform", steps=3, guidance_text=2.0, guidance_reference=4.0)
    expected = sampler([Request(example.prompt, example.references)], settings)[0]
    found = minimal.sample(
        sampler.cinema, sampler.params, sampler.preprocessor, example.prompt, example.references, steps=3
    )
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.std() > 5


def test_its_loss_is_that_of_the_library(minimal, loaded):
    run, sampler = loaded
    batch = minimal.make_batch(run.source("train"), sampler.preprocessor, np.random.default_rng(0), 3)

    @jax.jit
    def both(params, batch, key):
        latents = sampler.cinema.encode_video(params, batch["video"])
        for_time, for_noise = jax.random.split(key)
        times, noise = jax.nn.sigmoid(jax.random.normal(for_time, 3)), jax.random.normal(for_noise, latents.shape)
        conditions = sampler.cinema.conditions(params, batch)
        errors = flow_errors(sampler.cinema, params, latents, noise, times, conditions)
        return minimal.flow_loss(sampler.cinema, params, batch, key), errors

    found, expected = both(sampler.params, jax.tree.map(jnp.asarray, batch), jax.random.key(1))
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)


def test_of_some_examples_nothing_is_shown_and_of_some_no_text(minimal, loaded):
    run, sampler = loaded
    batch = minimal.make_batch(run.source("train"), sampler.preprocessor, np.random.default_rng(0), 120)
    nothing = batch["entity_lengths"] == 0
    empty = sampler.preprocessor.text("")[0]
    untold = (batch["caption_tokens"] == empty).all(axis=1)
    assert not (nothing & ~untold).any()
    assert 4 <= nothing.sum() <= 22
    assert 1 <= (untold & ~nothing).sum() <= 14
