"""Whole runs at the smallest size: every stage, resuming, and what they leave behind."""

import dataclasses
import json
import shutil
import subprocess
import sys

import generated
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import process_environment, tiny_config, tiny_values

from cinema_jax.config import parse
from cinema_jax.data.example import Reference
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.checkpoint import complete_steps, load_params
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.training import loop, reports
from cinema_jax.training.loop import Trainer
from cinema_jax.training.stages import STAGES


@pytest.fixture(scope="module")
def compilations():
    """The compiled train steps, in order."""
    return {}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, compilations):
    """A finished run of all five stages."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    build = loop.make_step

    def counting(*arguments, **options):
        step = build(*arguments, **options)
        compilations[len(compilations)] = step
        return step

    values = tiny_values()
    values.align.sample_every = values.finetune.sample_every = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", counting)
        patch.setattr(loop.reports, "show_sheet", seen(loop.reports.show_sheet, workdir))
        loop.train(Run.open(parse(values), workdir))
    return workdir


def seen(show_sheet, workdir):
    """`show_sheet`, which notes its sheets: stage, step, rows, and the weights of the AlignerNet that drew it."""

    def noting(run, sampler, metrics, step, count=reports.GLIMPSED, *bar):
        videos = show_sheet(run, sampler, metrics, step, count, *bar)
        aligner = {path: np.asarray(x).sum() for path, x in sampler.params.items() if path.startswith("aligner")}
        stage = "align" if not run.finished("align") else "finetune"
        line = {"stage": stage, "step": step, "rows": len(videos), "aligner": float(sum(aligner.values()))}
        with workdir.with_name("sheets.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        assert (workdir / "samples" / "contact_sheet.png").exists()
        return videos

    return noting


def test_contact_sheets_are_drawn_while_it_trains_with_the_weights_of_then(workdir):
    sheets = [json.loads(line) for line in workdir.with_name("sheets.jsonl").read_text().splitlines()]
    drawn = [(sheet["stage"], sheet["step"], sheet["rows"]) for sheet in sheets]
    # The last one is that of the finished stage.
    assert drawn == [("align", 1, 4), ("finetune", 1, 4), ("finetune", 2, reports.SHOWN)]
    # It is trained in both stages.
    assert len({sheet["aligner"] for sheet in sheets}) == 3


def test_those_of_few_subjects_are_shown_first(tmp_path):
    run = Run(tiny_config(), tmp_path)
    source = run.source("validation")
    shown = reports.shown_examples(run, source, 4)
    counts = [len(conditions.references) for conditions in shown.values()]
    asked = [len(reports.held_out_conditions(run, source, index).references) for index in range(12)]
    assert len(shown) == 4
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (min(asked), max(asked))
    assert list(reports.shown_examples(run, source, 4)) == list(shown)


def test_each_stage_compiles_its_step_once_per_shape(workdir, compilations):
    sizes = [step._cache_size() for step in compilations.values()]
    # The first two begin with single pictures: two shapes each.
    assert sizes == [2, 2, 1, 1, 1, 1]


def test_all_stages_finish_with_metrics_weights_and_samples(workdir):
    config = tiny_config()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for stage in config.stages:
        record = json.loads((workdir / "stages" / f"{stage}.json").read_text())
        assert record["steps"] == getattr(config, stage).steps
        assert np.isfinite(record["eval_loss"])
        assert set(record["digests"]) == set(STAGES[stage].parts)
        steps = [line["step"] for line in lines if line["stage"] == stage and "loss" in line]
        assert steps == list(range(1, record["steps"] + 1))
        assert list((workdir / "tensorboard" / stage).iterdir())
    for part in ("vae", "t5", "mllm", "aligner", "dit"):
        assert len(list((workdir / "parts" / part).glob("*.safetensors"))) == 1
    assert (workdir / "samples" / "contact_sheet.png").exists()
    assert len(list((workdir / "samples").glob("*.mp4"))) == reports.SHOWN
    finetune = json.loads((workdir / "stages" / "finetune.json").read_text())
    assert 0 <= finetune["identity_generated"] <= 1
    assert 0 <= finetune["identity_real"] <= 1


def test_frozen_parts_pass_through_a_stage_unchanged(workdir):
    digests = {s: json.loads((workdir / "stages" / f"{s}.json").read_text())["digests"] for s in ("align", "finetune")}
    for part in ("vae", "mllm", "dit"):
        assert digests["align"][part] == digests["finetune"][part]
    assert digests["align"]["aligner"] != digests["finetune"]["aligner"]


def test_a_stage_may_train_a_piece_of_a_part(workdir, tmp_path):
    """The VAE's decoder alone, from a trained VAE: the whole part is written, its encoder as it was."""
    before = load_file(workdir / "parts/vae/diffusion_pytorch_model.safetensors")
    values = tiny_values()
    values.stages, values.weights.vae = ("vae",), str(workdir / "parts/vae")
    values.vae.trainable, values.vae.image_steps = ("vae/decoder/.*",), 0
    loop.train(Run.open(parse(values), tmp_path / "decoder"))
    after = load_file(tmp_path / "decoder/parts/vae/diffusion_pytorch_model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_a_run_whose_prompts_t5_reads_is_judged_as_well(workdir, tmp_path):
    values = tiny_values()
    values.stages, values.init, values.condition.conditioner = ("finetune",), str(workdir), "t5"
    values.finetune.trainable = ("dit/.*",)
    # Encoded videos serve a run whose references are shown otherwise.
    values.data.augment.rotation, values.data.threads = 5.0, 1
    run = Run.open(parse(values), tmp_path / "t5")
    shutil.copytree(workdir / "latents", run.workdir / "latents")
    loop.train(run)
    assert {file.name for file in (run.workdir / "latents").iterdir()} == {
        file.name for file in (workdir / "latents").iterdir()
    }
    record = json.loads((run.workdir / "stages" / "finetune.json").read_text())
    # The MLLM judges, though it does not read.
    assert 0 <= record["identity_generated"] <= 1


def test_an_interrupted_stage_goes_on_to_the_same_weights(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    checkpoints = copy / "checkpoints" / "align"
    assert complete_steps(checkpoints) == [1, 2]
    shutil.rmtree(checkpoints / "2")
    shutil.rmtree(copy / "parts" / "aligner")
    for stage in ("align", "finetune"):
        (copy / "stages" / f"{stage}.json").unlink()
    run = Run.open(tiny_config(), copy)
    # The transformer was finetuned since; it is what `align` began with once more.
    parts.write("dit", run.part_config("dit"), load_params(copy / "checkpoints" / "pretrain"), copy / "parts" / "dit")
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        Trainer(run, STAGES["align"], mesh).run_stage()
    # The whole run's aligner was finetuned since; the stage's own result is the average in its last checkpoint.
    before, after = (load_params(d / "checkpoints" / "align", step=2) for d in (workdir, copy))
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(before[path], after[path], err_msg=path)
    steps = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if s["stage"] == "align" and "loss" in s] == [1, 2]


def test_a_run_of_another_config_is_refused_by_field(workdir):
    config = dataclasses.replace(tiny_config(), seed=7)
    with pytest.raises(InputError, match=r"config\.seed is 0 there and 7 here"):
        Run.open(config, workdir)


def test_generated_latents_depend_on_the_seed_and_on_nothing_else_in_the_batch(workdir):
    _, sampler = load_sampler(workdir)
    rng = np.random.default_rng(0)
    picture = Reference(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8), None, "a")
    other = Reference(rng.integers(0, 255, (20, 50, 3), dtype=np.uint8), None, "b")
    settings = sampler.settings(steps=2)
    one, two = (Request("it jumps", (picture,), seed) for seed in (1, 2))
    pair = Request("they meet", (picture, other), 3)
    together = sampler([one, pair], settings)
    assert together.shape == (2, settings.frames, settings.height, settings.width, 3)
    again = sampler([pair, one], settings)
    # Rows of one batch may be summed in another order: equal up to one step of rounding to 8 bits.
    assert np.abs(together[0].astype(int) - again[1].astype(int)).max() <= 1
    assert not np.array_equal(sampler([two, pair], settings)[0], together[0])


def test_another_process_generates_the_same_bytes(workdir):
    command = [sys.executable, generated.__file__, str(workdir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=process_environment(), check=True)
    assert done.stdout.strip() == generated.latents_digest(workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 8}, "frames is 8; the nearest that the model can hold is 9"),
        ({"height": 40}, "height is 40; the nearest that the model can hold is 32"),
        ({"width": 1}, "width is 1; the nearest that the model can hold is 16"),
    ],
)
def test_sizes_that_the_model_cannot_hold_are_refused_with_the_nearest(workdir, changes, message):
    _, sampler = load_sampler(workdir)
    with pytest.raises(InputError, match=message):
        sampler.settings(**changes)


def test_an_unfinished_run_cannot_generate(tmp_path):
    Run.open(tiny_config(), tmp_path)
    with pytest.raises(InputError, match="holds nothing that was trained yet"):
        load_sampler(tmp_path)
