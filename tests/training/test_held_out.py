"""Which held-out examples are shown wrong conditions, and which ones."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import tiny_config

from cinema_jax.cinema import Cinema
from cinema_jax.data.example import Conditions, Reference
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.devices import sharding
from cinema_jax.experiment.run import Run
from cinema_jax.training import held_out
from cinema_jax.training.stages import STAGES


def pictures(*names):
    """References of plain colours."""
    shades = {name: 20 * (1 + ord(name) - ord("a")) for name in names}
    return tuple(Reference(np.full((32, 32, 3), shade, np.uint8), None, name) for name, shade in shades.items())


class Clips:
    """Examples whose references and groups are given."""

    def __init__(self, references, groups=None):
        self.references, self.groups = references, groups or [str(i) for i in range(len(references))]

    def __len__(self):
        return len(self.references)

    def id(self, index):
        return f"clip {index}"

    def group(self, index):
        return self.groups[index]

    def video(self, index):
        raise NotImplementedError

    def frame(self, index, rng):
        raise NotImplementedError

    def caption(self, index):
        return f"a cat {index}"

    def conditions(self, index, rng):
        return Conditions(self.caption(index), f"it sits {index}", self.references[index])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny_config()
    condition = dataclasses.replace(config.condition, conditioner="t5")
    finetune = dataclasses.replace(config.finetune, batch_size=4)
    config = dataclasses.replace(config, condition=condition, finetune=finetune, stages=("finetune",))
    return Run(config, tmp_path_factory.mktemp("held_out"))


def told(run, *sources):
    """What each bucket's examples are told: by kind, how bright each one's references are."""
    buckets = [
        Examples(source, run.preprocessor(), range(len(source)), np.zeros((len(source), 2, 4, 4, 4)), augment=False)
        for source in sources
    ]
    stage = STAGES["finetune"]
    cinema = Cinema(run.config, run.part_configs(stage.needed(run.config)))
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        made = held_out.HeldOut(stage, cinema, mesh, Mixture(tuple(buckets)))
    return [{kind: shades(batch) for kind, batch in bucket.items()} for bucket in made._told], made


def shades(batch):
    """Of each example, how bright its references are."""
    pictures = np.asarray(batch["references"])[:, :, 0, 0, 0] // 20
    return [shown[:count].tolist() for shown, count in zip(pictures, batch["entity_lengths"], strict=True)]


def test_references_are_swapped_for_as_many_of_another_group_where_there_are_some(run):
    references = [pictures("a", "b"), pictures("c"), pictures("d", "e"), pictures("f"), pictures("g", "h")]
    # The first two of two subjects may be of the same ones.
    (kinds,), _ = told(run, Clips(references, ["x", "y", "x", "z", "w"]))
    assert kinds["right"] == [[1, 2], [3], [4, 5], [6]]
    assert kinds["swapped_references"] == [[7, 8], [6], [7, 8], [3]]
    assert kinds["no_references"] == [[], [], [], []]
    assert kinds["no_text"] == kinds["right"]


def test_those_that_have_references_are_shown_over_and_over_in_batches_of_the_others_shape(run):
    (kinds,), made = told(run, Clips([(), pictures("a"), (), pictures("b"), ()]))
    assert kinds["right"] == [[1], [2], [1], [2]]
    assert kinds["swapped_references"] == [[2], [1], [2], [1]]
    assert {b["latents"].shape for b in [*made.batches, *made._told[0].values()]} == {(4, 2, 4, 4, 4)}
    assert list(made._told[0]["right"]["index"]) == [1, 3, 1, 3]


def test_what_cannot_be_told_is_left_out(run):
    alone, without = Clips([pictures("a"), pictures("b")], ["x", "x"]), Clips([(), ()])
    one, two = told(run, alone, without)[0]
    assert one.keys() == {"right", "no_references", "no_text"}
    assert two.keys() == {"right", "no_text"}


def test_ratios_are_over_the_buckets_that_were_told_so():
    def losses(*values):
        return {f"loss_t{i}": x for i, x in enumerate(values)} | {"loss": np.mean(values[:4])}

    right, wrong = losses(1, 1, 1, 2, 3, 4), losses(1, 1, 2, 4, 3, 8)
    found = held_out.ratios([{"right": right, "no_text": wrong}, {"right": right}])
    assert found.keys() == {"ratio/no_text", "ratio/no_text_loss", *(f"ratio/no_text_t{i}" for i in range(6))}
    assert [found[f"ratio/no_text_t{i}"] for i in range(6)] == [1, 1, 2, 2, 1, 2]
    assert found["ratio/no_text"] == pytest.approx((2 + 4 + 3) / (1 + 2 + 3))
    assert found["ratio/no_text_loss"] == 2
    both = held_out.ratios([{"right": right, "no_text": wrong}, {"right": right, "no_text": right}])
    assert both["ratio/no_text_t2"] == pytest.approx(3 / 2)
