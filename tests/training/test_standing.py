"""Which weights a run stands for: the same for all commands, and told by all of them in their first line."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from tiny import random_params, random_run, tiny_config

from cinema_jax import convert, generate
from cinema_jax.config import to_dict
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.exchange.exports import export_checkpoint
from cinema_jax.exchange.imports import import_checkpoint
from cinema_jax.exchange.inspection import inspect
from cinema_jax.experiment import checkpoint, parts, standing
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.pipeline import Pipeline
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.training import beginning, state
from cinema_jax.training.optimizer import make_optimizer

TRAINED = ("aligner", "dit")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What `config.init` names: every part."""
    return random_run(tmp_path_factory.mktemp("runs") / "base")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A run that starts from it, in the middle of `finetune`: checkpoints of steps 1 and 2."""
    weights = dataclasses.replace(tiny_config().weights, **dict.fromkeys(to_dict(tiny_config().weights), ""))
    config = dataclasses.replace(tiny_config(), stages=("align", "finetune"), init=str(base), weights=weights)
    run = Run.open(config, tmp_path_factory.mktemp("runs") / "under_way")
    params = {path: x for name in TRAINED for path, x in random_params(name, run.part_config(name)).items()}
    finish(run, "align")
    first = state.create(params, make_optimizer(config.finetune.optimizer, 5), sharding.make_mesh(), seed=0)
    with checkpoint.Checkpoints(run.workdir / "checkpoints" / "finetune") as checkpoints:
        for step in (1, 2):
            moved = {name: jax.tree.map(lambda x, by=by: x + by, getattr(first, name)) for name, by in MOVED.items()}
            ema = jax.tree.map(lambda x, step=step: x + step, moved["ema"])
            checkpoints.save(dataclasses.replace(first, step=first.step + step, params=moved["params"], ema=ema), {})
    return run.workdir, params


# What is added to the weights of the checkpoints; the step comes to the average.
MOVED = {"params": 100, "ema": 0}


@pytest.fixture
def run(made, tmp_path):
    """A copy of it to be changed."""
    return Run.load(Path(shutil.copytree(made[0], tmp_path / "under_way")))


def finish(run: Run, stage: str, written=()) -> None:
    record = {"steps": 2, "parts": {}, "digests": {}, "written": {name: "digest" for name in written}}
    (run.workdir / "stages").mkdir(exist_ok=True)
    (run.workdir / "stages" / f"{stage}.json").write_text(json.dumps(record))


def sampled(workdir) -> dict[str, np.ndarray]:
    sampler = load_sampler(workdir)[1]
    return {path: np.asarray(x) for path, x in sampler.params.items() if path.split("/")[0] in TRAINED}


def test_an_unfinished_run_stands_for_its_newest_average_and_not_for_what_it_started_from(run, made, tmp_path):
    for path, x in sampled(run.workdir).items():
        np.testing.assert_array_equal(x, made[1][path] + np.float32(2))
    export_checkpoint(run, tmp_path / "exported")
    for path, x in sampled(tmp_path / "exported").items():
        np.testing.assert_array_equal(x, made[1][path] + np.float32(2))


def test_a_checkpoint_is_compared_with_its_sums_once(run, monkeypatch):
    looked, find = [], checkpoint.find_damage
    monkeypatch.setattr(checkpoint, "find_damage", lambda path, branch="": looked.append(path) or find(path, branch))
    pipeline = Pipeline.open(run.workdir)
    pipeline.checked(pipeline.requests("it jumps", [np.zeros((16, 16, 3), np.uint8)]))
    pipeline.load()
    assert len(looked) == 1


def first_line(capsys, command) -> str:
    capsys.readouterr()
    command()
    return capsys.readouterr().out.splitlines()[0]


def test_every_command_says_in_its_first_line_what_it_uses(run, tmp_path, capsys):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")

    def generated():
        words = [f"--checkpoint={run.workdir}", f"--reference={tmp_path / 'a.png'}", "--prompt=it jumps", "--steps=1"]
        with flagsaver.flagsaver(reference=[]):
            flags.FLAGS(["generate", *words, f"--output={tmp_path / 'a.mp4'}", "--compilation_cache="])
            generate.main()

    def exported(*more):
        words = ["convert", "export", f"--checkpoint={run.workdir}", f"--output={tmp_path / 'x'}", *more]
        convert.main(convert._parser(words))
        shutil.rmtree(tmp_path / "x")

    said = f"weights of {run.workdir}: finetune, step 2 of 2 (not finished), average"
    assert first_line(capsys, generated) == said
    assert first_line(capsys, exported) == said
    last = first_line(capsys, lambda: exported("--weights=params"))
    assert last == said.replace("average", "last values, not the average")
    inspected = list(inspect([run.workdir]))
    assert inspected[0] == said
    assert f"dit: {run.workdir}/checkpoints/finetune/2" in "\n".join(inspected)


def test_what_is_finished_is_what_lies_in_parts(run, made):
    for name in TRAINED:
        params = {path: x + np.float32(7) for path, x in made[1].items() if path.startswith(f"{name}/")}
        parts.write(name, run.part_config(name), params, run.workdir / "parts" / name)
    finish(run, "finetune", written=TRAINED)
    assert str(standing.stands_for(run)) == "finetune, finished after 2 steps, average"
    for path, x in sampled(run.workdir).items():
        np.testing.assert_array_equal(x, made[1][path] + np.float32(7))
    # Without its checkpoints the last values are nowhere.
    shutil.rmtree(run.workdir / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint of finetune any more, and so only the average is there"):
        standing.stands_for(run, "params")
    shutil.rmtree(run.workdir / "parts" / "dit")
    with pytest.raises(InputError, match="parts/dit is not there any more, which finetune had written"):
        load_sampler(run.workdir)


def test_without_the_checkpoints_of_a_stage_it_is_said_what_stands_in_for_it(run, base):
    shutil.rmtree(run.workdir / "checkpoints")
    said = str(standing.stands_for(run))
    assert said.startswith("align, finished after 2 steps, average; finetune has no checkpoint; ")
    assert f"dit is that of {base}/parts/dit" in said


def test_a_run_without_anything_of_its_own_is_refused(run):
    for name in ("checkpoints", "stages"):
        shutil.rmtree(run.workdir / name)
    with pytest.raises(InputError, match="holds nothing that was trained yet: let its training come to its first"):
        load_sampler(run.workdir)


def test_a_checkpoint_that_its_run_removes_meanwhile_is_replaced_by_the_next(run, made, monkeypatch):
    """`generate` beside a training run."""
    read, folder = standing.Standing.params, run.workdir / "checkpoints" / "finetune"

    def read_and_removed(self, part):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / "2")
        return read(self, part)

    monkeypatch.setattr(standing.Standing, "params", read_and_removed)
    for path, x in sampled(run.workdir).items():
        np.testing.assert_array_equal(x, made[1][path] + np.float32(1))


def test_nothing_starts_from_a_run_that_is_not_finished(run, tmp_path):
    config = dataclasses.replace(run.config, init=str(run.workdir))
    with pytest.raises(InputError, match=r"config\.init is .*: finetune is not finished there, and its weights will"):
        beginning.check(Run(config, tmp_path / "next"))
    with pytest.raises(InputError, match="finetune is not finished there"):
        import_checkpoint([run.workdir], tmp_path / "imported")


def test_weights_that_ship_with_the_project_are_its_own_from_any_folder(tmp_path, monkeypatch):
    """A config says config.init=weights/demo_pretrain."""
    (tmp_path / "weights/demo_pretrain").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parts.checkpoint_folder("weights/demo_pretrain") == Path(__file__).parents[2] / "weights/demo_pretrain"
    assert parts.checkpoint_folder("./weights/demo_pretrain") == Path("weights/demo_pretrain")


def test_sizes_that_weights_override_are_named(tmp_path, caplog):
    config = Run.load(parts.checkpoint_folder("packaged")).config
    beginning.tell_ignored(Run(config, tmp_path / "a"), ("finetune",))
    assert not caplog.messages
    weights = dataclasses.replace(config.weights, vae="packaged")
    vae = dataclasses.replace(config.vae_model, num_res_blocks=7)
    beginning.tell_ignored(Run(dataclasses.replace(config, weights=weights, vae_model=vae), tmp_path / "a"), ("vae",))
    assert caplog.messages[0].startswith("config.vae_model.num_res_blocks is 7, which is ignored: the weights in ")
