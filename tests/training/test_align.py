"""What the AlignerNet starts from."""

import shutil

import jax
import numpy as np
import pytest
from tiny import random_params, random_run, tiny_values

from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.training.loop import Trainer
from cinema_jax.training.stages import STAGES


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of every part but the aligner."""
    folder = random_run(tmp_path_factory.mktemp("runs") / "init")
    shutil.move(folder / "parts" / "aligner", folder.with_name("aligner"))
    return folder


def initial(weights, workdir, aligner="", trainable=("aligner/.*",)):
    values = tiny_values()
    values.stages, values.init, values.weights.aligner = ("align",), str(weights), str(aligner)
    values.align.trainable = trainable
    run, mesh = Run.open(parse(values), workdir), sharding.make_mesh()
    with jax.set_mesh(mesh):
        trainer = Trainer(run, STAGES["align"], mesh)
    return run, trainer.initial | trainer.frozen


def test_a_new_aligner_starts_at_the_scale_of_t5s_features(weights, tmp_path):
    run, found = initial(weights, tmp_path)
    drawn = parts.initialise("aligner", run.part_config("aligner"), run.config.seed)
    scale = random_params("t5", run.part_config("t5"))["t5/final_norm/scale"]
    assert not np.allclose(scale, 1)
    for path, x in drawn.items():
        expected = scale if path == "aligner/output_norm/scale" else x
        np.testing.assert_array_equal(found[path], expected, err_msg=path)
    assert not found["aligner/output_norm/bias"].any()


def test_an_aligner_that_is_there_and_a_scale_that_is_frozen_stay_as_they_are(weights, tmp_path):
    aligner = weights.with_name("aligner")
    run, found = initial(weights, tmp_path / "there", aligner)
    for path, x in random_params("aligner", run.part_config("aligner")).items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    _, found = initial(weights, tmp_path / "frozen", trainable=("aligner/layers/.*",))
    assert (np.asarray(found["aligner/output_norm/scale"]) == 1).all()
