"""What the judge learns from, and that it learns and goes on."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.data.critters.identity import draw_identity
from cinema_jax.evaluation import lessons, teaching
from cinema_jax.evaluation.judge.config import JudgeConfig
from cinema_jax.evaluation.judge.model import Judge
from cinema_jax.evaluation.teaching import Part
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.weights.rules import flatten

SMALL = JudgeConfig(width=8, deep_width=8, deep_blocks=1, embedding=8)


@pytest.mark.parametrize("seed", range(40))
def test_twins_differ_in_little_and_were_never_held_out(seed):
    identity = draw_identity(seed, "train")
    other = lessons.twin(identity, np.random.default_rng(seed))
    assert other.key != identity.key
    assert other.split == "train"
    assert (other.species, other.color, other.girth) == (identity.species, identity.color, identity.girth)


def test_a_lesson_shows_its_subjects_and_their_pictures():
    lesson = lessons.draw(5, twins=True)
    assert (lesson["cover"].sum(axis=(1, 2)) > 0).sum() == lesson["count"]
    for name in ("references", "twins"):
        shown = [(picture < 250).any() for picture in lesson[name]]
        assert sum(shown) == lesson["count"]


@pytest.fixture
def drawn():
    lessons_ = [lessons.draw(index, twins=True) for index in range(4)]
    return {name: np.stack([lesson[name] for lesson in lessons_]) for name in lessons_[0]}


def test_a_step_makes_the_loss_smaller(drawn):
    judge = Judge(SMALL, rngs=nnx.Rngs(0))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=0), 10)
    params = flatten(judge)
    state = (params, params, optimizer.transform.init(params))
    step = jax.jit(functools.partial(teaching._step, nnx.graphdef(judge), optimizer))
    key = jax.random.key(0)
    state, before = step(state, drawn, key, 0)
    _, after = step(state, drawn, key, 1)
    assert step._cache_size() == 1
    weights = {"where": 1, "who": 1, "back": 0.5, "place": 0.2}
    assert sum(w * (after[name] - before[name]) for name, w in weights.items()) < 0


def test_teaching_goes_on_where_it_was_stopped(drawn, tmp_path, monkeypatch):
    """With steps that add what they see, so that each of them counts once and in its order."""

    def step(graph, optimizer, state, batch, key, number):
        params, _, moments = state
        seen = batch["frame"].mean() + jax.random.normal(key)
        return ({name: 0.9 * x + seen for name, x in params.items()}, params, moments), {"seen": seen}

    monkeypatch.setattr(teaching, "_step", step)
    monkeypatch.setattr(teaching, "BATCH", 2)
    monkeypatch.setattr(teaching, "SAVE_EVERY", 2)
    monkeypatch.setattr(lessons, "prepare", lambda *_: drawn)
    parts = [Part("a", 0, 4, True, 3, 1e-2), Part("b", 0, 4, True, 4, 1e-2)]
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole = teaching.teach(tmp_path / "whole", SMALL, parts)

    save, saved = teaching._save, []

    def stopping(file, state, number):
        save(file, state, number)
        saved.append((file.stem, number))
        if saved[-1] == ("b", 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(teaching, "_save", stopping)
    with pytest.raises(KeyboardInterrupt):
        teaching.teach(tmp_path / "stopped", SMALL, parts)
    again = teaching.teach(tmp_path / "stopped", SMALL, parts)
    assert saved == [("a", 2), ("a", 3), ("b", 2), ("b", 4)]
    for path, x in whole.items():
        np.testing.assert_array_equal(x, again[path], err_msg=path)
