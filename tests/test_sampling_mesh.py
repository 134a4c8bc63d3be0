"""One sampler on one device and on several: the same videos, weights by the table, the programs that `plan` shows."""

import json
import re
import subprocess
import sys

import meshed
import numpy as np
import pytest
from tiny import process_environment

from cinema_jax.errors import InputError
from cinema_jax.sampling import room
from cinema_jax.sampling.options import mesh_sizes

SEVERAL = [name for name in meshed.MESHES if name != "one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `meshed.py` has left."""
    folder = tmp_path_factory.mktemp("meshed")
    command = [sys.executable, meshed.__file__, folder]
    done = subprocess.run(command, env=process_environment(devices=8), stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", SEVERAL)
def test_every_mesh_samples_what_one_device_does(folder, name):
    one, several = (np.load(folder / f"{mesh}.npy") for mesh in ("one", name))
    assert several.shape == (meshed.MESHES[name][1], *one.shape[1:])
    np.testing.assert_allclose(several, one[: len(several)], rtol=0, atol=1e-5)


def test_codes_on_several_devices_sample_what_they_do_on_one(folder, found):
    """And something else than numbers do."""
    one, several, numbers = (np.load(folder / f"{name}.npy")[:1] for name in ("int8 on one", "int8", "one"))
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-5)
    assert 1e-4 < np.abs(one - numbers).max() < 0.3
    assert found["int8"]["bytes"] < found["context"]["bytes"]


@pytest.mark.parametrize("name", [*SEVERAL, "int8"])
def test_no_device_holds_a_weight_whole_that_the_table_splits(found, name):
    assert found[name]["split"] > 20
    assert found[name]["whole"] == []


@pytest.mark.parametrize("name", [*meshed.MESHES, "int8"])
def test_a_device_holds_as_many_bytes_as_plan_says(found, name):
    assert found[name]["bytes"] == pytest.approx(found[name]["planned"], rel=0.05)


def test_plan_compiles_the_programs_that_run(found):
    """Of a flow, of a noise schedule with noise in every step, and of kernels that are codes."""
    assert found["different programs"] == []


@pytest.mark.parametrize("name", meshed.CHECKED)
def test_what_was_compiled_to_know_whether_there_is_room_is_not_compiled_again(found, name):
    programs = ["conditions", "_step", "decode_video"]
    assert found[name]["before"] == programs
    assert not set(programs) & set(found[name]["compiled"])
    assert set(programs[:2]) <= set(found["one"]["compiled"])


def test_parts_that_wait_with_the_host_make_the_same_video_to_the_bit(found):
    assert found["away"]
    assert np.ptp(found["kept"]["video"]) > 20
    assert found["offloaded"]["video"] == found["kept"]["video"]


def test_layers_that_are_fetched_make_the_same_video_to_the_bit(found):
    assert found["layers"] == found["kept"]["video"]
    assert found["step of layers"] < 0.7 * found["step"]


def test_while_the_transformer_samples_the_other_parts_are_not_on_the_devices(found):
    """What lies there is what the compiled step is given; of states, those of the steps before and after as well."""
    assert found["offloaded"]["most"] == pytest.approx(found["step"], rel=0.05)
    assert found["step"] < 0.6 * found["context"]["bytes"]


@pytest.mark.parametrize("way", ["kept", "offloaded"])
def test_requests_in_a_row_leave_memory_as_the_second_one_left_it(found, way):
    _, second, *others = found[way]["left"]
    assert others == [second, second]


def test_too_little_memory_is_one_sentence_with_what_helps(found):
    said = found["refusals"]
    assert said.keys() == {"weights", "a part's weights", "activations", "all"}
    form = r"(conditions|a step of 3 branches|decoding) on context 4, a video of 5x32x32, needs 0.0 of 0.0 GiB a device"
    assert all(re.match(f"{form}: take ", sentence) for sentence in said.values())
    ways = {name: sentence.split(": take ")[1] for name, sentence in said.items()}
    assert ways["weights"] == "--weights=int8, --offload, more devices or a smaller video"
    assert ways["a part's weights"] == "--weights=int8, --offload=layers, more devices or a smaller video"
    # What would be enough.
    assert re.fullmatch(r"((--weights=int8|--offload)(, | or ))*about \d+ devices", ways["activations"])
    assert re.fullmatch(r"(--weights=int8, )?--offload or about 8 devices", ways["all"])


@pytest.mark.parametrize(
    "said", ["", "4", "context", "context=", "context=x", "context=4,context=2", "rows=2", "context=-2", "context=4,,"]
)
def test_a_mesh_of_another_form_is_refused_with_an_example(said):
    with pytest.raises(InputError, match=r"--mesh is .*; accepted are sizes of the axes .* data=2,context=2$"):
        mesh_sizes(said)


def test_a_mesh_is_sizes_of_axes():
    assert mesh_sizes("data=2, context=-1") == {"data": 2, "context": -1}
    assert mesh_sizes(None) == {}


@pytest.mark.parametrize(
    ("rest", "ways", "offload", "sentence"),
    [
        (2, {"--weights=int8": 9, "--offload": 4}, False, "--weights=int8 or about 8 devices"),
        (2, {"--weights=int8": 9, "--offload": 8}, False, "--weights=int8, --offload or about 8 devices"),
        (2, {"--weights=int8": 1}, True, "about 8 devices"),
        (None, {"--weights=int8": 9}, True, "--weights=int8, --offload=layers, more devices or a smaller video"),
        (10**6, {}, "layers", "more devices or a smaller video"),
    ],
)
def test_what_would_be_enough_is_advised(rest, ways, offload, sentence):
    """Of 16 bytes of weights, on four devices with ten; a clause for what needs less where nothing is known to do."""
    need = room.Need("a step", {"dit": 12, "vae": 4}, rest, 10)
    assert not need.fits
    assert room._advice(need, ways, 4, offload, 1, False) == sentence
    plan = str(room.Plan({"context": 4}, "a video", (need,)))
    assert plan.startswith("a video on context 4\na step: ")
    assert plan.endswith("; does NOT fit")
