"""What `plan` accepts `train` starts, and what it refuses `train` refuses in the same words."""

import json

import pytest
from test_sharding import on_eight_devices

# What is changed of the smallest run, whose stages are `mllm` and `pretrain`, on eight devices in one slice; and what
# both say of it.
CASES = {
    "a batch of pretrain": (
        {"pretrain.batch_size": 12},
        "config.pretrain.batch_size: a batch of 12 does not split",
    ),
    "pictures of a stage before": ({"mllm.image_batch_size": 4}, "config.mllm.image_batch_size: a batch of 4 does not"),
    "videos after pictures": ({"mllm.batch_size": 20}, "config.mllm.batch_size: a batch of 20 does not split"),
    "no pictures": ({"mllm.image_batch_size": 0}, "config.mllm.image_batch_size is 0; it must be at least 1"),
    "microbatches": ({"pretrain.microbatches": 3}, "config.pretrain.microbatches is 3; it must divide"),
    "microbatches of pictures": (
        {"mllm.microbatches": 16},
        "config.mllm.microbatches is 16; it must divide",
    ),
    "contact sheets without what draws them": (
        {"pretrain.sample_every": 5},
        "config.pretrain.sample_every is 5, but pretrain has no aligner, mllm to generate videos with",
    ),
    "data": ({"mesh.data": 3}, "mesh slice 1 x data 3 x fsdp 1 x context 1 x tensor 1 does not fit 8 devices"),
    "slices": ({"mesh.slice": 3}, "mesh slice 3 x data -1 x fsdp 1 x context 1 x tensor 1 does not fit 8 devices"),
    "two fillers": ({"mesh.fsdp": -1}, "at most one axis may be -1"),
    "all axes of a slice": ({"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2, "pretrain.batch_size": 2}, ""),
    "parts of a slice": ({"mesh.slice": 2, "mesh.fsdp": 4, "pretrain.microbatches": 2}, ""),
}

BOTH = """
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from test_agreement import CASES
from tiny import random_run, tiny_values

from cinema_jax.devices import sharding
from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.planning import planner
from cinema_jax.training import beginning, loop, state
from cinema_jax.experiment.run import Run
from cinema_jax.training.stages import STAGES, make_step


def config_of(changes, parts):
    values = tiny_values()
    values.stages = ("mllm", "pretrain")
    for stage in (values.mllm, values.pretrain):
        stage.batch_size = 8
    values.mllm.image_batch_size = 8
    values.init = parts
    values.update_from_flattened_dict(changes)
    return parse(values)


def first_step(run):
    # The real step on a real batch, as far as tracing it: latents aside, which are nobody's concern here.
    mesh = sharding.make_mesh(**vars(run.config.mesh))
    with jax.set_mesh(mesh):
        trainer = loop.Trainer(run, STAGES["pretrain"], mesh)
        shape = planner.program.abstract_batch(trainer.cinema, "pretrain", 1)["latents"].shape[1:]
        latents = np.zeros((4, *shape), np.float32)
        examples = loop.Examples(run.source("train"), run.preprocessor(), range(4), latents)
        _, batch = next(trainer.batches((loop.Mixture((examples,)),), 0))
        current = state.abstract(trainer.initial, trainer.optimizer, mesh)
        make_step(trainer.stage, trainer.cinema, trainer.optimizer, current).trace(current, trainer.frozen, batch)


def begin(run):
    # As the command does.
    beginning.check(run)
    loop.train(run)


def verdict(action):
    try:
        action()
    except InputError as error:
        return str(error)
    return ""


found = {}
with tempfile.TemporaryDirectory() as parts:
    random_run(Path(parts))
    for name, (changes, sentence) in CASES.items():
        config = config_of(changes, parts)
        with tempfile.TemporaryDirectory() as planned, tempfile.TemporaryDirectory() as trained:
            target = planner.Target("v5e:2x4", slices=1)
            by_plan = verdict(lambda: planner.plan_hosts(Run(config, Path(planned)), "pretrain", target))
            run = Run.open(config, Path(trained))
            by_train = verdict(lambda: begin(run) if sentence else first_step(run))
            found[name] = [by_plan, by_train]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def verdicts(tpus):
    """Case to what plan and train say: nothing where they accept it."""
    return json.loads(on_eight_devices(BOTH).splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_plan_and_train_say_the_same(case, verdicts):
    by_plan, by_train = verdicts[case]
    sentence = CASES[case][1]
    assert by_plan == by_train
    assert (sentence in by_plan) if sentence else not by_plan
