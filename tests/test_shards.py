"""Files written tensor by tensor, and arrays read from an Orbax checkpoint one part at a time."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

from cinema_jax.errors import InputError
from cinema_jax.weights import shards
from cinema_jax.weights.rules import LINEAR, Rule, export_weights, publish
from cinema_jax.weights.stored import open_stored
from cinema_jax.weights.tensors import WeightError, contiguous

RNG = np.random.default_rng(0)
TENSORS = {
    "b.weight": RNG.standard_normal((3, 5), np.float32),
    "a": RNG.standard_normal((2, 2, 3)).astype(ml_dtypes.bfloat16),
    "half": RNG.standard_normal(7).astype(np.float16),
    "scalar": np.array(3, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "wide": np.arange(4.0),
    "ünïcode": np.ones(3, np.float32),
}


def test_the_file_is_that_of_the_library_to_the_byte(tmp_path):
    shards.write_tensors(tmp_path / "ours.safetensors", TENSORS)
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("target", [None, np.float32, ml_dtypes.bfloat16])
def test_transposed_matrices_are_copied_exactly(dtype, target):
    x = RNG.standard_normal((70, 33)).astype(dtype)
    for view in (x.T, x.T[5:20], x.T[:, 7:9], x, x[:, ::2], x.T[:, ::-1], x[:1].T, x[:, :1].T):
        expected = np.array(view, dtype=target, order="C")
        np.testing.assert_array_equal(contiguous(view, target), expected)
        rows = np.full((2, *view.shape), 9, expected.dtype)
        contiguous(view, target, rows[1])
        np.testing.assert_array_equal(rows[1], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, bad, dtype):
    x = np.full((3, 50_000), -1, dtype)
    x[2, -1] = bad
    with pytest.raises(WeightError, match="x holds numbers that are not finite"):
        shards.write_tensors(tmp_path / "m.safetensors", {"x": x})
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("size", ["5", "", "many", "5XB", "-GB"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match=r"max_shard_size is .* such as 5GB"):
        shards.plan("model", TENSORS, size)


def test_files_hold_every_tensor_once_and_no_more_than_asked():
    files = shards.plan("model", TENSORS, 80)
    assert sorted(name for names in files.values() for name in names) == sorted(TENSORS)
    assert max(sum(shards.nbytes(TENSORS[name]) for name in names) for names in files.values()) <= 80
    assert next(iter(files)) == f"model-00001-of-{len(files):05d}.safetensors"
    assert list(shards.plan("model", TENSORS, "1MB")) == ["model.safetensors"]


@pytest.fixture
def stored(tmp_path):
    """Arrays that Orbax saved, and what they are."""
    mesh = jax.make_mesh((1,), ("fsdp",))
    place = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    arrays = {
        "blocks/to_q/kernel": RNG.standard_normal((3, 8, 5)).astype(ml_dtypes.bfloat16),
        "bias": RNG.standard_normal((4, 2), np.float32),
    }
    placed = {name: jax.device_put(x, place) for name, x in arrays.items()}
    ocp.save_checkpointables(tmp_path / "saved", {"params": {"ema": placed, "other": placed["bias"] + 1}})
    return tmp_path / "saved" / "params", arrays


def test_any_part_of_a_stored_array_is_read(stored):
    folder, arrays = stored
    opened = open_stored(folder, ("ema",))
    assert opened.keys() == arrays.keys()
    assert open_stored(folder).keys() == {*(f"ema/{name}" for name in arrays), "other"}
    for name, x in arrays.items():
        assert (opened[name].shape, opened[name].dtype, opened[name].nbytes) == (x.shape, x.dtype, x.nbytes)
        np.testing.assert_array_equal(opened[name], x)
        for index in (1, (slice(1, 3), slice(0, 2)), slice(None), (0, 1), (slice(None), 1)):
            np.testing.assert_array_equal(opened[name][index], x[index])
    assert opened["bias"].astype(np.float16)[1].dtype == np.float16


def test_a_stored_number_that_is_not_finite_is_refused_when_it_is_read(tmp_path):
    ocp.save_checkpointables(tmp_path / "saved", {"params": {"x": jax.numpy.array([1.0, np.nan])}})
    opened = open_stored(tmp_path / "saved" / "params")["x"]
    assert opened[0] == 1
    with pytest.raises(WeightError, match="x holds numbers that are not finite"):
        np.asarray(opened)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, stored):
    with pytest.raises(InputError, match="holds no complete checkpoint of Orbax"):
        open_stored(tmp_path)
    (stored[0] / "_METADATA").write_text("{}")
    with pytest.raises(InputError, match="holds no complete checkpoint of Orbax"):
        open_stored(stored[0])


def test_published_tensors_come_from_stacked_arrays_of_any_kind(stored):
    folder, arrays = stored
    table = (Rule("layers.{layer}.q.weight", "blocks/to_q/kernel", LINEAR), Rule("b", "bias"))
    expected = {f"layers.{i}.q.weight": x.T for i, x in enumerate(arrays["blocks/to_q/kernel"])} | {"b": arrays["bias"]}
    for kind in (arrays, open_stored(folder, ("ema",)), {name: jax.numpy.asarray(x) for name, x in arrays.items()}):
        tensors = publish(kind, table)
        assert {name: x.shape for name, x in tensors.items()} == {name: x.shape for name, x in expected.items()}
        for name, x in export_weights(kind, table).items():
            assert x.flags.c_contiguous
            np.testing.assert_array_equal(x, expected[name])
