"""A stage that begins with single images and goes on to longer clips: what each step sees, and how it is resumed."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from clips import write_images
from ml_collections import ConfigDict
from PIL import Image
from tiny import random_run, tiny_values

from cinema_jax.config import parse, to_dict
from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import complete_steps, step_path
from cinema_jax.experiment.run import Run
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.training import beginning, check, loop, rehearsal
from cinema_jax.training.phases import every_run, phases, run_in
from cinema_jax.training.preparing import prepare
from cinema_jax.training.remaining import Remaining, phase_flops, stage_flops
from cinema_jax.weights.stored import open_stored

# (frames, last step, batch, learning rate); then clips of nine frames in batches of two.
CURRICULUM = ((1, 2, 4, 4e-3), (5, 4, 2, 2e-3))
STEPS = 6


def values(**data):
    values = tiny_values()
    values.stages, values.weights.vae = ("pretrain",), "packaged"
    stage = values.pretrain
    stage.steps, stage.batch_size, stage.keep, stage.eval_every, stage.curriculum = STEPS, 2, 9, 0, CURRICULUM
    stage.optimizer.learning_rate, stage.optimizer.warmup_steps, stage.optimizer.final_fraction = 1e-3, 0, 0.1
    values.data.frames = 9
    values.data.update(data)
    return values


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped, and the shapes of its batches."""
    workdir = tmp_path_factory.mktemp("curriculum") / "whole"
    shapes, place = [], loop.sharding.global_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.sharding, "global_batch", lambda b, *more: shapes.append(b["latents"].shape) or place(b, *more)
        )
        loop.train(Run.open(parse(values()), workdir))
    return workdir, shapes


def state(workdir, step):
    folder = step_path(workdir / "checkpoints/pretrain", step) / "state"
    return {path: np.asarray(x) for path, x in open_stored(folder, ("params", "opt_state")).items()}


def logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_phase_has_its_clips_batch_and_rate(whole):
    workdir, shapes = whole
    assert [shape[:2] for shape in shapes] == [(4, 1)] * 2 + [(2, 2)] * 2 + [(2, 3)] * 2
    rates = [line["learning_rate"] for line in logged(workdir) if "learning_rate" in line]
    # Those of the phases, then a cosine over the two steps of the main one, from its rate to a tenth.
    np.testing.assert_allclose(rates, [4e-3, 4e-3, 2e-3, 2e-3, 1e-3, 1e-4], rtol=1e-6)


@pytest.mark.parametrize("kept", [1, 4, *(pytest.param(kept, marks=pytest.mark.release) for kept in (2, 3, 5))])
def test_a_run_stopped_after_any_step_goes_on_to_the_same(whole, kept, tmp_path, caplog):
    caplog.set_level("INFO")
    again = shutil.copytree(whole[0], tmp_path / "again")
    shutil.rmtree(again / "stages")
    for step in complete_steps(again / "checkpoints/pretrain"):
        if step > kept:
            shutil.rmtree(step_path(again / "checkpoints/pretrain", step))
    jax.clear_caches()
    loop.train(Run.open(parse(values()), again))
    expected, found = state(whole[0], STEPS), state(again, STEPS)
    assert expected.keys() == found.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    # What is over is neither encoded nor compiled again.
    left = sum(phase.end > kept for phase in phases(parse(values()), "pretrain"))
    assert re.findall(r"(\d) programs compiled", caplog.text) == ([str(left)] if left > 1 else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four clips of nine frames, four of five, four pictures."""
    root, rng, lines = tmp_path_factory.mktemp("folder"), np.random.default_rng(0), []
    for name, frames in [*((f"long{i}", 9) for i in range(4)), *((f"short{i}", 5) for i in range(4))]:
        images = [rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(frames)]
        write_images(root / f"{name}.mp4", images, 8)
        lines.append({"video": f"{name}.mp4", "caption": name})
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / f"still{i}.png")
        lines.append({"video": f"still{i}.png", "caption": f"still {i}"})
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def on_folder(folder, **data):
    given = {"source": "folder", "path": str(folder), "fps": 8.0, "validation_fraction": 0.2, "train_videos": 0}
    return parse(values(**given | data))


def kinds(run):
    """How many clips of each kind there are, of both splits."""
    sources = [source for split in ("train", "validation") for _, source in run.sources(split)]
    names = [source.id(i) for source in sources for i in range(len(source))]
    return {kind: sum(name.startswith(kind) for name in names) for kind in ("long", "short", "still")}


def test_pictures_and_short_clips_are_in_the_phases_that_they_are_long_enough_for(folder, tmp_path):
    run = Run(on_folder(folder), tmp_path)
    found = [kinds(run_in(run, "pretrain", phase)) for phase in phases(run.config, "pretrain")]
    assert found == [
        {"long": 4, "short": 4, "still": 4},
        {"long": 4, "short": 4, "still": 0},
        {"long": 4, "short": 0, "still": 0},
    ]


def test_a_phase_that_the_vae_cannot_code_is_refused_before_anything_is_trained(tmp_path):
    """CogVideoX' takes 1, 9, 17, ... frames; the second phase has 5."""
    given = values()
    given.vae_model, given.weights.vae = ConfigDict(to_dict(CogVideoXVAEConfig())), ""
    with pytest.raises(InputError, match=r"no clips of up_to_5_frames/5x32x32x3: frames=5 must be 8k \+ 1"):
        beginning._check_clips(Run(parse(given), tmp_path), ["pretrain"])


@pytest.fixture(scope="module")
def trained_on_folder(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "folder"
    run = Run.open(on_folder(folder), workdir)
    beginning.check(run)
    loop.train(run)
    return workdir


def test_latents_are_kept_for_each_phase(trained_on_folder):
    frames = {np.load(file, mmap_mode="r").shape[1] for file in (trained_on_folder / "latents").glob("train-*.npy")}
    assert frames == {1, 2, 3}
    assert np.isfinite(Run.load(trained_on_folder).finished("pretrain")["eval_loss"])


def test_records_of_all_phases_are_trained_on_as_the_folder_is(folder, trained_on_folder, tmp_path):
    records = tmp_path / "records"
    assert prepare(on_folder(folder), folder, str(records), shard_size=3, batch_size=2)
    there = {str(file.parent.relative_to(records)) for file in records.rglob("dataset_info.json")}
    assert there == {"9x32x32x3", "up_to_1_frames/1x32x32x3", "up_to_5_frames/5x32x32x3"}
    config = on_folder(folder, source="records", path=str(records))
    videos, encoded = (Run(one, tmp_path / "none") for one in (on_folder(folder), config))
    for theirs, ours in zip(every_run(videos, ["pretrain"]), every_run(encoded, ["pretrain"]), strict=True):
        assert kinds(theirs) == kinds(ours)
    loop.train(Run.open(config, tmp_path / "run"))
    losses = [
        [line["loss"] for line in logged(each) if "loss" in line] for each in (trained_on_folder, tmp_path / "run")
    ]
    # Records are in bf16.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)


def test_the_check_loads_a_batch_of_each_phase_that_is_left_and_takes_the_step_of_the_longest_clips(
    folder, trained_on_folder, tmp_path
):
    told = check.check(on_folder(folder), tmp_path / "new")
    lines = [line for line in told if line.startswith("data")]
    assert [re.search(r"step (\d), batch of (\d)", line).groups() for line in lines] == [
        ("1", "4"),
        ("3", "2"),
        ("5", "2"),
    ]
    again = shutil.copytree(trained_on_folder, tmp_path / "again")
    (again / "stages/pretrain.json").unlink()
    for step in (4, 5, 6):
        shutil.rmtree(step_path(again / "checkpoints/pretrain", step))
    left = rehearsal.phases_left(Run(on_folder(folder), again), "pretrain")
    assert [(phase.frames, step) for phase, step in left] == [(5, 3), (None, 4)]


def test_the_time_that_is_left_counts_longer_clips_as_longer(tmp_path):
    config = values()
    config.init, config.weights.vae = str(random_run(tmp_path / "made")), ""
    run = Run(parse(config), tmp_path / "run")
    first, second, main = phases(run.config, "pretrain")
    each = [phase_flops(run, "pretrain", phase) for phase in (first, second, main)]
    assert sum(each) < stage_flops(run, "pretrain")
    assert each[1] < each[2]
    left = Remaining(run, "pretrain")
    flops = each[0] // 2
    # After the first step: one more of its kind, and the others at its speed.
    assert left.seconds(5, 3.0, flops) is None
    for one in left._counted.values():
        one.exception(timeout=300)
    np.testing.assert_allclose(left.seconds(5, 3.0, flops), 3.0 * (1 + (each[1] + each[2]) / flops))
    assert left.seconds(1, 3.0, flops) == 3.0
    left.close()


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (((4, 2, 4, 1e-3),), r"config\.pretrain\.curriculum\[0\]\[0\] \(frames\) is 4; it must be 4k\+1"),
        (((1, 6, 4, 1e-3),), r"\[0\]\[1\] \(last step\) is 6; it must be above 0 and below config\.pretrain\.steps, 6"),
        (((1, 3, 4, 1e-3), (5, 3, 4, 1e-3)), r"\[1\]\[1\] \(last step\) is 3; it must be above 3"),
        (((1, 3, 0, 1e-3),), r"\[0\]\[2\] \(batch_size\) is 0"),
        (((1, 3, 4, 0.0),), r"\[0\]\[3\] \(learning_rate\) is 0\.0"),
    ],
)
def test_phases_that_are_none_are_refused(curriculum, message):
    wrong = values()
    wrong.pretrain.curriculum = curriculum
    with pytest.raises(InputError, match=message):
        parse(wrong)
    wrong.pretrain.curriculum, wrong.align.curriculum = (), CURRICULUM
    with pytest.raises(InputError, match=r"config\.align\.curriculum is .*; only pretrain and finetune may have one"):
        parse(wrong)
