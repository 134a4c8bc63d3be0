"""Training on clips of two sizes: one program each, compiled beforehand, and the same when it goes on."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import prepared
import pytest
from tiny import tiny_values

from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import complete_steps, step_path
from cinema_jax.experiment.run import Run
from cinema_jax.training import loop
from cinema_jax.training.preparing import prepare
from cinema_jax.weights.stored import open_stored

BUCKETS = ((5, 32, 32, 3), (1, 32, 48, 1))


def values(**data):
    values = tiny_values()
    values.stages, values.data.buckets, values.weights.vae = ("pretrain",), BUCKETS, "packaged"
    values.pretrain.steps, values.pretrain.batch_size, values.pretrain.keep = 6, 2, 9
    values.pretrain.eval_every = 0
    values.data.update(data)
    return values


def state(workdir, step):
    folder = step_path(workdir / "checkpoints/pretrain", step) / "state"
    return {path: np.asarray(x) for path, x in open_stored(folder, ("params",)).items()}


def ids(config):
    sources = [run.source("train") for run in Run(config, Path("none")).buckets]
    return [[source.id(i) for i in range(len(source))] for source in sources]


def test_a_run_of_two_buckets_compiles_two_steps_and_goes_on_to_the_same(tmp_path, caplog):
    caplog.set_level("INFO")
    shapes, place = [], loop.sharding.global_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.sharding, "global_batch", lambda b, *more: shapes.append(b["latents"].shape) or place(b, *more)
        )
        loop.train(Run.open(parse(values()), tmp_path / "whole"))
    assert [shape[1:4] for shape in shapes] == [(2, 4, 4), (1, 4, 6)] * 3
    assert re.findall(r"(\d) programs compiled", caplog.text) == ["2"]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/stages")
    for step in complete_steps(tmp_path / "again/checkpoints/pretrain"):
        if step > 3:
            shutil.rmtree(step_path(tmp_path / "again/checkpoints/pretrain", step))
    jax.clear_caches()
    loop.train(Run.open(parse(values()), tmp_path / "again"))
    whole, again = state(tmp_path / "whole", 6), state(tmp_path / "again", 6)
    assert whole.keys() == again.keys()
    for path, x in whole.items():
        np.testing.assert_array_equal(again[path], x, err_msg=path)


@pytest.mark.release
def test_records_of_two_buckets_are_trained_on(tmp_path):
    folder = prepared.make_folder(tmp_path / "folder")
    given = {"source": "folder", "path": str(folder), "fps": 8.0, "validation_fraction": 0.3}
    # Those of at most one subject are longer.
    given["buckets"] = ((9, 32, 48, 1), (5, 32, 48, 3))
    assert prepare(parse(values(**given)), folder, str(tmp_path / "records"), shard_size=3, batch_size=2)
    from_records = given | {"source": "records", "path": str(tmp_path / "records")}
    videos, records = (ids(parse(values(**x, train_videos=0))) for x in (given, from_records))
    assert videos == records
    assert all(videos)
    loop.train(Run.open(parse(values(**from_records)), tmp_path / "run"))
    assert np.isfinite(Run.load(tmp_path / "run").finished("pretrain")["eval_loss"])


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        (((4, 32, 32, 1),), r"config\.data\.buckets\[0\]\[0\] \(frames\) is 4; it must be 4k\+1"),
        (((5, 32, 33, 1),), r"\[2\] \(width\) is 33; it must be a multiple of 16"),
        (((5, 32, 32, 4),), r"\[3\] \(references\) is 4; it must be from 1 to config\.data\.max_references, 3"),
        (((5, 32, 32, 1), (5, 32, 32, 1)), r"buckets\[1\] is \(5, 32, 32, 1\), as one before it"),
        (((5, 32, 32),), r"must have 4 values"),
    ],
)
def test_buckets_that_are_none_are_refused(buckets, message):
    with pytest.raises(InputError, match=message):
        parse(values(buckets=buckets))
