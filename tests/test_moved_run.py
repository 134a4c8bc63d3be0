"""A run on another machine than it was trained on, where its config's paths lead nowhere: --init."""

import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from tiny import process_environment, random_run, tiny_values

from cinema_jax import convert, generate
from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What the run started from, as it lies on this machine."""
    return random_run(tmp_path_factory.mktemp("here") / "weights")


@pytest.fixture
def moved(weights, tmp_path):
    """A run that trained aligner and transformer, from /gcs/BUCKET/weights; `change` alters its config."""

    def make(change=lambda values: None):
        values = tiny_values()
        values.stages = ("align", "finetune")
        values.weights.update(dict.fromkeys(values.weights, ""))
        values.init = "/gcs/BUCKET/weights"
        change(values)
        Run._enter(parse(values), tmp_path / "run", amend=False)
        for part in ("aligner", "dit"):
            shutil.copytree(weights / "parts" / part, tmp_path / "run/parts" / part)
        return tmp_path / "run"

    return make


def test_parts_that_are_not_here_are_asked_for_by_name(moved):
    run = Run.load(moved())
    assert run.folder("dit") == run.workdir / "parts/dit"
    with pytest.raises(InputError) as error:
        run.folder("vae")
    assert "'/gcs/BUCKET/weights' does not exist" in str(error.value)
    assert "--init=DIR says where they lie on this machine" in str(error.value)
    assert "\n" not in str(error.value)


def test_init_is_where_they_lie_on_this_machine(moved, weights):
    run = Run.load(moved(), str(weights))
    assert {run.folder(part) for part in ("vae", "t5", "mllm")} == {
        weights / "parts" / p for p in ("vae", "t5", "mllm")
    }
    assert run.folder("dit") == run.workdir / "parts/dit"
    assert run.config.init == "/gcs/BUCKET/weights", "what it was trained from stays on record"


def test_init_stands_for_named_parts_that_are_not_here_alone(moved, weights):
    def change(values):
        values.init, values.weights.vae, values.weights.t5 = "", "/gcs/BUCKET/vae", "packaged"

    run = Run.load(moved(change), str(weights))
    assert run.folder("vae") == weights / "parts/vae"
    assert run.folder("t5") != weights / "parts/t5"
    with pytest.raises(InputError, match=r"config\.weights\.vae: '/gcs/BUCKET/vae' does not exist.*--init=DIR"):
        Run.load(run.workdir).folder("vae")


def test_an_init_that_lacks_a_part_of_the_run_is_refused(moved, weights, tmp_path):
    run = Run.load(moved())
    run.finish("align", {"steps": 1, "parts": {"vae": "/gcs/BUCKET/weights/parts/vae", "aligner": "random"}})
    shutil.copytree(weights, tmp_path / "other", ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(InputError, match=r"--init=.*other holds no vae, which .*run was trained with"):
        Run.load(run.workdir, str(tmp_path / "other"))


def test_training_is_told_what_is_wrong_in_its_own_words(moved, tmp_path):
    config = Run.load(moved()).config
    with pytest.raises(InputError, match="'/gcs/BUCKET/weights' does not exist") as error:
        Run(config, tmp_path / "new").folder("vae")
    assert "--init" not in str(error.value)


def generated(*words):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["generate", "--prompt=x", *words])
    generate.main()


def exported(*words):
    convert.main(convert._parser(["convert", "export", "--output=out", *words]))


@pytest.mark.parametrize("command", [generated, exported])
def test_generate_and_export_say_what_they_miss(command, moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("a.png")
    checkpoint = f"--checkpoint={moved()}"
    pictures = ["--reference=a.png"] if command is generated else []
    with flagsaver.flagsaver(reference=[]):
        with pytest.raises(InputError, match=r"'/gcs/BUCKET/weights' does not exist.*--init=DIR"):
            command(checkpoint, *pictures, "--init=")
        with pytest.raises(InputError, match=r"--init=none: 'none' does not exist"):
            command(checkpoint, *pictures, "--init=none")


@pytest.mark.parametrize("command", ["evaluate", "serve"])
def test_evaluate_and_serve_take_init_as_well(command, moved):
    words = [sys.executable, "-m", f"cinema_jax.{command}", f"--checkpoint={moved()}", "--init=none"]
    ended = subprocess.run(words, env=process_environment(), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: --init=none: 'none' does not exist")
