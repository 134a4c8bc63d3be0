"""Going on in a folder with another config: taking over, lengthening, and what is refused."""

import json
import logging
import shutil

import pytest
from killed import config as one_stage
from tiny import tiny_values

from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import complete_steps
from cinema_jax.experiment.run import Run
from cinema_jax.training import loop


def values(**changes):
    """The run of two stages in these tests; `changes` by field, with __ for the dot."""
    values = tiny_values()
    values.stages = ("mllm", "t5")
    values.mllm.image_steps, values.t5.steps = 1, 2
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (values[section] if section else values)[field] = value
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of one stage."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    loop.train(Run.open(parse(values(stages=("mllm",))), workdir))
    return workdir


@pytest.fixture(scope="module")
def workdir(finished):
    """The same, with a second stage that has not begun."""
    workdir = shutil.copytree(finished, finished.with_name("run"))
    Run.open(parse(values()), workdir, amend=True)
    return workdir


def test_a_workdir_without_a_checkpoint_is_taken_over(tmp_path):
    Run.open(one_stage(), tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "mllm"}\n')
    (tmp_path / "latents").mkdir()
    Run.open(parse(values(seed=3)), tmp_path)
    assert Run.load(tmp_path).config.seed == 3
    assert not (tmp_path / "metrics.jsonl").exists()
    assert (tmp_path / "latents").exists()


def test_a_workdir_in_use_is_not_taken_over(tmp_path):
    run = Run.open(one_stage(), tmp_path)
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        Run.open(parse(values(seed=3)), tmp_path)


def test_a_field_that_is_newer_than_the_folder_had_its_default_there(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "older")
    config = json.loads((workdir / "config.json").read_text())
    del config["condition"]["clean_text"]
    (workdir / "config.json").write_text(json.dumps(config))
    Run.open(parse(values(stages=("mllm",))), workdir)
    with pytest.raises(InputError, match=r"config\.condition\.clean_text is False there and True here"):
        Run.open(parse(values(stages=("mllm",), condition__clean_text=True)), workdir)


def test_changes_are_refused_without_amend_which_is_named(workdir):
    with pytest.raises(InputError, match=r"config\.t5\.steps is 2 there and 9 here\. .*--amend"):
        Run.open(parse(values(t5__steps=9)), workdir)
    assert Run.load(workdir).config.t5.steps == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 3}, r"config\.seed is 0 there and 3 here \(all stages depend on it\)"),
        ({"mllm__image_batch_size": 3}, r"config\.mllm\.image_batch_size .* \(mllm has begun\)"),
        ({"mllm__steps": 1}, r"config\.mllm\.steps .* \(2 steps are done\)"),
        ({"stages": ("t5", "mllm")}, r"config\.stages .* \(mllm came first\)"),
    ],
)
def test_what_would_change_what_was_trained_is_refused_by_name(workdir, changes, reason):
    with pytest.raises(InputError, match=reason):
        Run.open(parse(values(**changes)), workdir, amend=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mllm__log_every", 7),
        ("mllm__eval_every", 1),
        ("mllm__checkpoint_every", 9),
        ("mllm__keep", 9),
        ("mllm__microbatches", 2),
        ("mesh__data", 1),
        ("dit_model__remat", "dots"),
        ("data__threads", 1),
        ("data__workers", 1),
    ],
)
def test_how_a_run_is_carried_out_may_change_without_a_word(finished, field, value):
    before = parse(values(stages=("mllm",)))
    changed = parse(values(stages=("mllm",), **{field: value}))
    assert changed != before
    assert Run.open(changed, finished).config == changed


def test_a_stage_that_has_not_begun_and_sampling_may_change_and_the_history_says_so(workdir):
    changed = values(t5__batch_size=3, flow__guidance_text=7.0)
    Run.open(parse(changed), workdir, amend=True)
    assert Run.load(workdir).config == parse(changed)
    last = json.loads((workdir / "history.jsonl").read_text().splitlines()[-1])
    assert last["changes"] == {"config.flow.guidance_text": [2.0, 7.0], "config.t5.batch_size": [2, 3]}
    assert last["done"] == {"mllm": 2}


def test_a_finished_run_is_lengthened_and_goes_on_from_its_last_step(finished, caplog, monkeypatch):
    workdir = shutil.copytree(finished, finished.with_name("longer"))
    monkeypatch.setattr(logging.getLogger("cinema_jax"), "propagate", True)
    with caplog.at_level(logging.INFO, "cinema_jax"):
        longer = Run.open(parse(values(stages=("mllm",), mllm__steps=4)), workdir, amend=True)
    assert "mllm goes on from step 2 to 4 (2 before): its cosine schedule is now that of a run of this" in caplog.text
    loop.train(longer)
    assert complete_steps(workdir / "checkpoints/mllm")[-1] == 4
    assert longer.finished("mllm")["steps"] == 4
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_a_stage_that_a_later_one_started_from_is_not_lengthened(workdir):
    (workdir / "stages/t5.json").write_text('{"steps": 2}')
    try:
        with pytest.raises(InputError, match=r"config\.mllm\.steps .* \(t5 started from what mllm left\)"):
            Run.open(parse(values(mllm__steps=9, t5__batch_size=3, flow__guidance_text=7.0)), workdir, amend=True)
    finally:
        (workdir / "stages/t5.json").unlink()
