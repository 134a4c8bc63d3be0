"""OpenS2V-Eval's files: its list in, its scores merged by its weights."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from cinema_jax.errors import InputError
from cinema_jax.evaluation.opens2v import NATURAL_WEIGHTS, SCORES, merge, read_samples

# What the benchmark's own example folder holds.
EXAMPLE = {
    "aesthetic_score": {
        "faceobj_14": {"aes_score": 4.811809062957764},
        "singleface_3": {"aes_score": 5.194509506225586},
    },
    "facesim": {"singleface_3": {"cur_score": 0.9420197624713182, "arc_score": 0.9367029462009668}},
    "gmescore": {"faceobj_14": {"gme_score": 0.68115234375}, "singleface_3": {"gme_score": 0.67236328125}},
    "motion_amplitude": {
        "faceobj_14": {"motion_fb": 0.35025984048843384, "motion_lk": 7.2},
        "singleface_3": {"motion_fb": 0.038793787360191345, "motion_lk": 0.7},
    },
    "motion_smoothness": {
        "faceobj_14": {"motion_smoothness": 0.8985507246376812},
        "singleface_3": {"motion_smoothness": 1.0},
    },
    "nexusscore": {"faceobj_14": {"nexus_score": 0.01300811767578125}, "singleobj_1": {"nexus_score": 0}},
    "naturalscore_1": {"faceobj_14": "4", "singleface_3": "3"},
    "naturalscore_2": {"faceobj_14": "4", "singleface_3": "3"},
    "naturalscore_3": {"faceobj_14": "4", "singleface_3": "4"},
}
# What its own merging says of it (eval/demo_result/model_name_Open-Domain.json).
PUBLISHED = {
    "aes_score": 0.3343864281972249,
    "motion_smoothness": 0.9492753623188406,
    "facesim_cur": 0.9420197624713182,
    "gme_score": 0.6767578125,
    "nexus_score": 0.260162353515625,
    "natural_score": 0.6666666666666667,
}


@pytest.fixture
def scores(tmp_path):
    for name, values in EXAMPLE.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return tmp_path


def test_scores_are_those_of_the_benchmark_s_own_example(scores):
    merged = merge(scores, "Open-Domain")
    for name, value in PUBLISHED.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-9, err_msg=name)
    amplitude = (0.35025984048843384 + 0.038793787360191345) / 2
    weights = {"aes_score": 0.16, "motion_smoothness": 0.06, "facesim_cur": 0.2, "gme_score": 0.12}
    weights |= {"nexus_score": 0.2, "natural_score": 0.24}
    total = 0.02 * amplitude + sum(weight * PUBLISHED[name] for name, weight in weights.items())
    np.testing.assert_allclose(merged["total_score"], total, rtol=1e-9)


def test_people_are_scored_without_nexus(scores):
    (scores / "nexusscore.json").unlink()
    assert "nexus_score" not in merge(scores, "Human-Domain")
    with pytest.raises(InputError, match=r"lacks scores of OpenS2V-Eval: nexusscore\.json"):
        merge(scores, "Open-Domain")


def test_weights_add_up_to_one():
    for human in (0, 1):
        total = sum(row[4 + human] for row in SCORES.values()) + NATURAL_WEIGHTS[human]
        np.testing.assert_allclose(total, 1)


def test_what_is_no_number_is_named(scores):
    (scores / "naturalscore_2.json").write_text('{"faceobj_14": "great"}')
    with pytest.raises(InputError, match=r"naturalscore_2\.json: faceobj_14 has the score 'great'"):
        merge(scores, "Open-Domain")


def samples_of(folder, **changes):
    (folder / "Images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "Images/1.png")
    entry = {"prompt": "a cup", "img_paths": ["Images/1.png"], "class_label": ["Cup"], **changes}
    (folder / "list.json").write_text(json.dumps({changes.pop("id", "singleobj_1"): entry}))
    return read_samples(folder / "list.json")


def test_a_list_is_read_with_images_beside_it(tmp_path):
    (sample,) = samples_of(tmp_path)
    assert (sample.id, sample.prompt, sample.images) == ("singleobj_1", "a cup", (tmp_path / "Images/1.png",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "../out"}, "is no id"),
        ({"img_paths": ["Images/2.png"]}, r"names an image that cannot be read: .*2\.png: no such file"),
        ({"img_paths": "Images/1.png"}, "needs a prompt and img_paths"),
        ({"prompt": None}, "needs a prompt and img_paths"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        samples_of(tmp_path, **changes)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/hostname", "link.png", "pipe.png", "a\0b", "x" * 5000])
def test_a_list_reads_no_other_file_of_this_machine(tmp_path, image):
    folder = tmp_path / "list"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "list.json").write_text(json.dumps({"a": {"prompt": "p", "img_paths": [image]}}))
    with pytest.raises(InputError, match=r"list\.json: a names an image that cannot be read"):
        read_samples(folder / "list.json")
