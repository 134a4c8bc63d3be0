"""Mapped tensors: what is read, and every way in which published files can be wrong."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

from cinema_jax.devices import sharding
from cinema_jax.weights.rules import LINEAR, Rule, import_weights
from cinema_jax.weights.tensors import Tensor, WeightError, open_tensors

A = np.arange(12, dtype=np.float32).reshape(3, 4)
SHARDS = {"one.safetensors": {"a": A, "b": A + 1}, "two.safetensors": {"c": A.astype(np.float16)}}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """Two shards with an index."""
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    write_index(tmp_path, {tensor: file for file, tensors in SHARDS.items() for tensor in tensors})
    return tmp_path


def write_index(folder, places):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_tensors_of_every_precision_are_read_exactly(tmp_path, dtype):
    save_file(
        {"x": A.astype(dtype), "scalar": np.array(2, dtype), "none": np.zeros((0, 3), dtype)},
        tmp_path / "m.safetensors",
    )
    tensors = open_tensors(tmp_path)
    assert tensors["x"].dtype == dtype
    np.testing.assert_array_equal(tensors["x"], A.astype(dtype))
    assert (tensors["scalar"].shape, tensors["none"].shape) == ((), (0, 3))


def test_shards_are_read_by_their_index(folder):
    save_file({"stray": A}, folder / "not_named.safetensors")
    tensors = open_tensors(folder)
    assert set(tensors) == {"a", "b", "c"}
    np.testing.assert_array_equal(tensors["b"], A + 1)


def test_a_part_is_read_without_the_rest(tmp_path):
    """Of a tensor that is larger than the machine's memory, in a file of holes."""
    rows, columns = 1 << 20, 1 << 14
    header = json.dumps({"x": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}})
    file = tmp_path / "m.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with file.open("r+b") as stream:
        stream.truncate(8 + len(header) + 4 * rows * columns)
        stream.seek(8 + len(header) + 4 * (500_000 * columns + 3))
        stream.write(np.float32(7).tobytes())
    block = Tensor({"x": open_tensors(tmp_path)["x"]}, stacked=False)[499_999:500_001, :5]
    np.testing.assert_array_equal(block, [[0, 0, 0, 0, 0], [0, 0, 0, 7, 0]])
    # A copy, not a view that would keep the file open and change with it.
    assert block.base is None


def test_stacked_and_transposed_layers_are_read_in_parts():
    tensors = {f"layers.{i}.weight": np.random.default_rng(i).normal(size=(3, 4)).astype(np.float16) for i in range(5)}
    table, shape = (
        (Rule("layers.{layer}.weight", "layers/kernel", LINEAR),),
        jax.ShapeDtypeStruct((5, 4, 3), np.float32),
    )
    array = import_weights(tensors, table, {"layers/kernel": shape})["layers/kernel"].astype(np.float32)
    whole = np.stack([x.T for x in tensors.values()]).astype(np.float32)
    assert (array.shape, array.dtype, len(array), array.nbytes) == (whole.shape, np.float32, 5, whole.nbytes)
    np.testing.assert_array_equal(np.asarray(array), whole)
    for index in [(slice(1, 3), slice(0, 2), slice(1, None)), (slice(2, 2),), (3,), (slice(None), 1)]:
        np.testing.assert_array_equal(array[index], whole[index])


def test_devices_get_the_parts_they_own(tmp_path):
    save_file({f"layers.{i}.weight": A + i for i in range(2)}, tmp_path / "m.safetensors")
    table, shape = (Rule("layers.{layer}.weight", "kernel", LINEAR),), jax.ShapeDtypeStruct((2, 4, 3), np.float32)
    array = import_weights(open_tensors(tmp_path), table, {"kernel": shape})["kernel"]
    mesh = sharding.make_mesh()
    place = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    placed = jax.make_array_from_callback(array.shape, place, lambda index: array[index])
    np.testing.assert_array_equal(placed, np.stack([A.T, A.T + 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(value):
    spoilt = A.copy()
    spoilt[1, 2] = value
    tensor = Tensor({"layers.0.weight": A, "layers.1.weight": spoilt}, stacked=True)
    np.testing.assert_array_equal(tensor[0:1], A[None])
    with pytest.raises(WeightError, match=r"layers\.1\.weight holds numbers that are not finite"):
        tensor[()]
    # Large numbers whose sum overflows are no such thing.
    assert Tensor({"x": np.full((4,), 3e38, np.float32)}, stacked=False)[()].shape == (4,)


def cut(folder):
    data = (folder / "two.safetensors").read_bytes()
    (folder / "two.safetensors").write_bytes(data[:-3])


def double(folder):
    save_file({"c": A, "a": A}, folder / "two.safetensors")
    (folder / INDEX).unlink()


def pickles_alone(folder):
    for file in folder.iterdir():
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def another_index(folder):
    (folder / "other.safetensors.index.json").write_text("{}")


PLACES = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "two.safetensors: damaged or no safetensors file"),
        (double, "a is both in .*one.safetensors and in .*two.safetensors"),
        (pickles_alone, "pytorch_model.bin and no .safetensors file; pickles can run any code"),
        (another_index, "has 2 indices"),
        (lambda f: [file.unlink() for file in f.iterdir()], "no .safetensors file here"),
        (lambda f: (f / "two.safetensors").unlink(), "names two.safetensors, which the folder lacks"),
        (lambda f: (f / INDEX).write_text("[]"), "is no index of safetensors files"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": 3}}'), "is no index of safetensors files"),
        (lambda f: write_index(f, PLACES | {"c": "../two.safetensors"}), r"names '\.\./two.safetensors'; accepted"),
        (lambda f: write_index(f, PLACES | {"c": "/etc/passwd"}), "names '/etc/passwd'; accepted are files in its own"),
        (
            lambda f: write_index(f, PLACES | {"c": "one.safetensors"}),
            "says that c is in one.safetensors, where it is not",
        ),
        (lambda f: write_index(f, PLACES | {"d": "one.safetensors"}), "says that d is in one.safetensors"),
        (lambda f: write_index(f, {"a": "one.safetensors"}), "holds b, which .* does not name"),
        (lambda f: save_file({"c": A.astype(np.int32)}, f / "two.safetensors"), "c is of type I32; accepted: F64, F32"),
    ],
)
def test_bad_files_are_refused_with_a_reason(folder, spoil, message):
    spoil(folder)
    with pytest.raises(WeightError, match=message):
        open_tensors(folder)


def test_a_shape_off_by_one_and_missing_and_unexpected_tensors_are_told_together(folder):
    table = tuple(Rule(name, name) for name in "abcd")
    expected = {name: jax.ShapeDtypeStruct((3, 5 if name == "b" else 4), np.float32) for name in "abd"}
    with pytest.raises(WeightError) as caught:
        import_weights(open_tensors(folder), table, expected)
    for part in ("missing d [3, 4]", "unexpected c [3, 4]", "b has shape [3, 4], the model [3, 5]"):
        assert part in str(caught.value)


def test_8_bits_are_read_to_their_largest_number_and_what_is_none_is_refused(tmp_path):
    good = torch.tensor([0.0, -0.5, 448.0, -448.0]).to(torch.float8_e4m3fn)
    bad = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    torch_save_file({"good": good, "bad": bad}, tmp_path / "x.safetensors")
    tensors = {name: Tensor({name: x}, stacked=False) for name, x in open_tensors(tmp_path / "x.safetensors").items()}
    np.testing.assert_array_equal(np.asarray(tensors["good"], np.float32), good.float().numpy())
    with pytest.raises(WeightError, match="bad holds numbers that are not finite"):
        np.asarray(tensors["bad"])
