"""What a stage leaves behind, whenever it is stopped: all of it or nothing."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import tiny_values

from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.experiment import results
from cinema_jax.experiment.run import Run
from cinema_jax.training import loop
from cinema_jax.training.stages.base import Stage

OPERATIONS = ("replace", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """What nothing here catches."""


@pytest.fixture
def workdir(tmp_path):
    """A run whose second stage has just written its record; both stages have trained the same part."""
    config = dataclasses.replace(parse(tiny_values()), stages=("pretrain", "finetune"))
    run = Run.open(config, tmp_path / "run")
    for stage, values in (("pretrain", "old"), ("finetune", "new")):
        for part in ("aligner", "dit"):
            folder = results.aside(run.workdir, stage) / part
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text(values)
            (folder / "config.json").write_text(values)
        (run.workdir / f"stages/{stage}.json").write_text("{}")
        if stage == "pretrain":
            results.settle(run.workdir)
    return run.workdir


def texts(workdir):
    return {file.parent.name + "/" + file.name: file.read_text() for file in (workdir / "parts").rglob("*.*")}


def dying(patch, moment):
    """From now on the file system does so many things and no more."""
    left = iter(range(moment))

    def until(original):
        def wrapped(*arguments, **options):
            if next(left, None) is None:
                raise Killed
            return original(*arguments, **options)

        return wrapped

    for name in OPERATIONS:
        patch.setattr(Path, name, until(getattr(Path, name)))


def test_what_was_moved_halfway_is_moved_to_its_end_from_every_moment_on(workdir, tmp_path):
    for moment in itertools.count():
        copy = shutil.copytree(workdir, tmp_path / str(moment))
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, moment)
            try:
                results.settle(copy)
                break
            except Killed:
                pass
        with pytest.raises(InputError, match="was stopped while the result of finetune was moved to its parts/"):
            Run.load(copy)
        results.settle(copy)
        assert sorted(texts(copy).values()) == ["new"] * 4
        assert Run.load(copy).folder("dit") == copy / "parts/dit"
    assert moment > 8


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that has trained a part of its VAE, changed and written all of it, and died in its closing report."""
    folder = tmp_path_factory.mktemp("vae")
    values = tiny_values()
    values.stages, values.vae.image_steps = ("vae",), 0
    values.vae.trainable, values.vae.importance = ("vae/(decoder|post_quant_conv).*",), 1.0
    first = Run.open(parse(values), folder / "first")
    loop.parts.write("vae", first.part_config("vae"), first.params("vae"), folder / "own")
    values.weights.vae = str(folder / "own")
    run = Run.open(parse(values), folder / "run")

    def dies(*arguments):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "closing_report", dies)
        with pytest.raises(Killed):
            loop.train(run)
    return run


VAE = "vae/diffusion_pytorch_model.safetensors"


def test_a_stage_that_goes_on_refuses_other_frozen_tensors_than_it_began_with(stopped, tmp_path):
    shutil.copytree(stopped.workdir, tmp_path / "run")
    file = Path(stopped.config.weights.vae) / VAE.removeprefix("vae/")
    tensors = load_file(file)
    save_file(tensors | {"quant_conv.bias": tensors["quant_conv.bias"] + 1}, file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"vae began with another vae than lies in {file.parent} now; put that back"):
        loop.train(Run.open(stopped.config, tmp_path / "run"))
    save_file(tensors, file, {"format": "pt"})


def test_the_end_of_a_stage_can_be_repeated(stopped):
    first = load_file(results.aside(stopped.workdir, "vae") / VAE)
    loop.train(Run.open(stopped.config, stopped.workdir))
    again = load_file(stopped.workdir / "parts" / VAE)
    for name in first:
        np.testing.assert_array_equal(again[name], first[name], err_msg=name)
    assert json.loads((stopped.workdir / "stages/vae.json").read_text())["written"].keys() == {"vae"}


def test_a_part_that_is_not_what_its_stage_wrote_is_refused(tmp_path):
    written = {"vae": ("vae", "a"), "dit": ("pretrain", "b")}
    own = str(tmp_path / "parts/vae")
    results.check_written(tmp_path, written, {"vae": own, "dit": "elsewhere"}, {"vae": "a", "dit": "c"})
    with pytest.raises(
        InputError, match=r"parts/vae is not what vae wrote there; put that back, or delete .*vae\.json"
    ):
        results.check_written(tmp_path, written, {"vae": own}, {"vae": "c"})
