import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import process_environment, run_together

from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.devices import sharding
from cinema_jax.experiment import checkpoint, checksums
from cinema_jax.experiment.checkpoint import CheckpointError, Checkpoints
from cinema_jax.training import state
from cinema_jax.training.optimizer import make_optimizer

OPTIMIZER = make_optimizer(OptimizerConfig(), steps=10)
PARAMS = {
    "dit/blocks/to_q/kernel": np.arange(128, dtype=np.float32).reshape(2, 8, 8),
    "dit/blocks/to_q/bias": np.ones((2, 8), np.float32),
}
METADATA = {"stage": "finetune", "config": {"width": 8, "betas": [0.9, 0.95]}, "frozen": {"t5": {"sha256": "ab"}}}


def new_state(mesh, step=0, params=PARAMS):
    """A state whose every leaf is different."""
    leaves, structure = jax.tree.flatten(state.create(params, OPTIMIZER, mesh, seed=1))
    leaves = [leaf + i if i else jnp.int32(step) for i, leaf in enumerate(leaves)]
    return sharding.place(jax.tree.unflatten(structure, leaves), mesh)


def abstract(mesh, params=PARAMS):
    return state.abstract(params, OPTIMIZER, mesh)


@pytest.fixture
def mesh():
    return sharding.make_mesh()


@pytest.fixture
def saved(tmp_path, mesh):
    """A folder with the checkpoint of step 5."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(new_state(mesh, 5), METADATA)
    return tmp_path


def test_state_comes_back_as_it_was(saved, mesh):
    with Checkpoints(saved) as checkpoints:
        restored, _ = checkpoints.restore(abstract(mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, new_state(mesh, 5))


def test_metadata_comes_back_as_it_was(saved):
    assert checkpoint.read_metadata(saved / "5") == METADATA


def test_restored_state_has_the_wanted_type(saved, mesh):
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding) if x.dtype == jnp.float32 else x,
        abstract(mesh),
    )
    with Checkpoints(saved) as checkpoints:
        restored, _ = checkpoints.restore(wanted)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, wanted)


def test_the_last_checkpoints_are_kept(tmp_path, mesh):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(new_state(mesh, step), {})
    assert checkpoint.complete_steps(tmp_path) == [2, 3]


def test_some_are_kept_for_good(tmp_path, mesh):
    for steps in (range(1, 5), range(5, 8)):
        with Checkpoints(tmp_path, keep=1, keep_every=3) as checkpoints:
            for step in steps:
                checkpoints.save(new_state(mesh, step), {})
    assert checkpoint.complete_steps(tmp_path) == [3, 6, 7]


def test_state_may_be_donated_while_it_is_saved(tmp_path, mesh):
    scramble = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 + 7, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        one = new_state(mesh, 1)
        checkpoints.save(one, {})
        jax.block_until_ready(scramble(one))
        checkpoints.wait()
        restored, _ = checkpoints.restore(abstract(mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, new_state(mesh, 1))


@pytest.mark.parametrize(
    "missing", ["commit_success.txt", "_CHECKPOINT_METADATA", "state/_METADATA", "state/commit_success.txt"]
)
def test_step_without_one_of_its_marks_is_not_seen(saved, missing):
    (saved / "5" / missing).unlink()
    assert checkpoint.complete_steps(saved) == []


def test_incomplete_step_is_set_aside_and_can_be_saved_anew(saved, mesh):
    (saved / "5" / "commit_success.txt").unlink()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(new_state(mesh, 5), {})
    assert checkpoint.complete_steps(saved) == [5]


def test_saving_a_step_twice_keeps_the_first(saved, mesh):
    with Checkpoints(saved) as checkpoints:
        checkpoints.restore(abstract(mesh))
        checkpoints.save(new_state(mesh, 5), {"stage": "other"})
    assert checkpoint.read_metadata(saved / "5") == METADATA


def test_step_of_another_run_is_replaced(saved, mesh):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(new_state(mesh, 5), {"stage": "other"})
    assert checkpoint.read_metadata(saved / "5") == {"stage": "other"}


def test_other_parameters_are_named_in_one_sentence(saved, mesh):
    other = {"dit/blocks/to_q/kernel": np.zeros((2, 8, 4), np.float32), "dit/blocks/to_k/bias": np.zeros(3, np.float32)}
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(abstract(mesh, other))
    assert str(error.value) == (
        f"{saved / '5'} does not fit this run: params/dit/blocks/to_k/bias is missing; "
        "params/dit/blocks/to_q/bias is not in this run; "
        "params/dit/blocks/to_q/kernel is [2, 8, 8] there and [2, 8, 4] here"
    )


def test_other_optimizer_is_named_by_its_moments(saved, mesh):
    wanted = abstract(mesh)
    fields = {name: getattr(wanted, name) for name in ("step", "params", "ema", "key", "skipped")}
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError, match="opt_state/1/mu/dit"):
        checkpoints.restore(state.TrainState(opt_state=(), **fields))


def test_step_that_is_not_there_is_refused_with_those_that_are(saved):
    with pytest.raises(CheckpointError, match="no complete checkpoint of step 4; there are steps 5"):
        checkpoint.step_path(saved, 4)


@pytest.mark.parametrize("ema", [True, False])
def test_load_params_reads_what_was_saved(saved, mesh, ema):
    params = {path: np.asarray(x) for path, x in checkpoint.load_params(saved, ema=ema).items()}
    expected = new_state(mesh, 5).ema if ema else new_state(mesh, 5).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_load_params_takes_the_folder_of_a_step(saved):
    assert sorted(checkpoint.load_params(saved / "5")) == sorted(PARAMS)


def test_digest_sees_one_changed_value():
    changed = PARAMS | {"dit/blocks/to_q/bias": np.nextafter(PARAMS["dit/blocks/to_q/bias"], 2, dtype=np.float32)}
    assert checkpoint.digest(PARAMS) != checkpoint.digest(changed)


def test_digest_does_not_depend_on_order_or_device():
    shuffled = {path: jnp.asarray(PARAMS[path]) for path in reversed(PARAMS)}
    assert checkpoint.digest(PARAMS) == checkpoint.digest(shuffled)


def test_digest_of_bfloat16():
    assert len(checkpoint.digest({"x": jnp.ones((2, 3), jnp.bfloat16), "scalar": jnp.zeros((), jnp.bfloat16)})) == 64


KILLED = """
import os, pathlib, signal, sys, numpy as np
sys.path.insert(0, "tests")
import test_checkpoint as t
mesh, params = t.sharding.make_mesh(), {"dit/to_q/kernel": np.ones((1024, 2048), np.float32)}
checkpoints = t.Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(t.new_state(mesh, 6, params), {})
os.kill(os.getpid(), signal.SIGKILL)
"""

OTHER_MESH = """
import sys, pathlib, jax, numpy as np
sys.path.insert(0, "tests")
import test_checkpoint as t
from cinema_jax.devices import sharding
folder = pathlib.Path(sys.argv[1])
saved = t.new_state(sharding.make_mesh(data=2, fsdp=4), 5)
with t.Checkpoints(folder) as checkpoints:
    checkpoints.save(saved, {})
    checkpoints.wait()
    for mesh in (sharding.make_mesh(data=1, devices=jax.devices()[:1]), sharding.make_mesh(data=8)):
        restored, _ = checkpoints.restore(t.abstract(mesh))
        jax.tree.map(np.testing.assert_array_equal, restored, saved)
        wanted = jax.tree.map(lambda x: x.sharding, t.abstract(mesh))
        assert jax.tree.map(lambda x: x.sharding, restored) == wanted
"""


def run(code, folder):
    """Run `code` in a process with eight CPU devices."""
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, env=process_environment(devices=8), capture_output=True, text=True, check=False)


def test_restore_onto_other_meshes(tmp_path):
    done = run(OTHER_MESH, tmp_path)
    assert done.returncode == 0, done.stderr


def test_save_that_was_killed_leaves_the_checkpoint_before_it(saved, mesh):
    assert run(KILLED, saved).returncode == -signal.SIGKILL
    assert (saved / "6.orbax-checkpoint-tmp").exists()
    with Checkpoints(saved) as checkpoints:
        restored, _ = checkpoints.restore(abstract(mesh))
    assert int(restored.step) == 5


@pytest.fixture
def two(tmp_path, mesh):
    """A folder with the checkpoints of steps 4 and 5."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (4, 5):
            checkpoints.save(new_state(mesh, step), METADATA | {"step": step})
    return tmp_path


def damageable(step):
    """The files of a checkpoint that hold anything."""
    found = sorted(file for file in step.rglob("*") if file.is_file() and file.stat().st_size)
    return [file for file in found if file.name != "commit_success.txt"]


def largest(step):
    """Of those that hold the arrays' bytes."""
    return max((file for file in damageable(step) if file.parent.name == "d"), key=lambda file: file.stat().st_size)


DAMAGE = {
    # In the middle of the arrays' bytes.
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_taken_and_both_are_named(two, mesh, damage, caplog):
    largest(two / "5").write_bytes(DAMAGE[damage](largest(two / "5").read_bytes()))
    with Checkpoints(two) as checkpoints:
        restored, metadata = checkpoints.restore(abstract(mesh))
        assert (int(restored.step), metadata["step"]) == (4, 4)
        assert f"the run goes on from the checkpoint before it, {two / '4'}" in caplog.text
        assert str(two / "5") in caplog.text
        # It gets there again.
        checkpoints.save(new_state(mesh, 5), METADATA)
    assert checkpoint.complete_steps(two) == [4, 5]
    assert (two / "5.damaged").is_dir()


def test_several_processes_go_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    said = run_together([Path(__file__).with_name("restored.py"), tmp_path / "saved"], seconds=120)
    # The step given, twice; that of the weights; the newest after the damaged one was made anew.
    assert [out.splitlines()[-1:] for _, out, _ in said] == [["1 1 1 2 True"]] * 2, said
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["1", "2", "2.damaged"]


def test_every_flipped_bit_is_found_or_changes_nothing(two, mesh):
    rng = np.random.default_rng(0)
    expected, found = new_state(mesh, 5), 0
    for _ in range(60):
        file = rng.choice(damageable(two / "5"))
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(data))
        if checkpoint.find_damage(two / "5"):
            found += 1
        else:
            for ema in (True, False):
                params = {path: np.asarray(x) for path, x in checkpoint.newest_params(two, ema=ema)[1].items()}
                jax.tree.map(np.testing.assert_array_equal, params, expected.ema if ema else expected.params)
        file.write_bytes(whole)
    assert found >= 20
    assert checkpoint.find_damage(two / "5") is None


def test_what_orbax_writes_beside_the_arrays_may_be_damaged(saved, mesh):
    (saved / "5" / "state" / "_sharding").write_bytes(b"cut")
    with Checkpoints(saved) as checkpoints:
        restored, _ = checkpoints.restore(abstract(mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, new_state(mesh, 5))


@pytest.mark.parametrize("change", [lambda text: text[:100], lambda text: text.replace("chunk_shape", "chunk_shaqe")])
def test_what_orbax_needs_beside_the_arrays_is_part_of_the_checkpoint(two, mesh, change):
    notes = two / "5" / "state" / "array_metadatas" / "process_0"
    notes.write_text(change(notes.read_text()))
    with Checkpoints(two) as checkpoints:
        restored, _ = checkpoints.restore(abstract(mesh))
    assert int(restored.step) == 4


def test_a_damaged_checkpoint_without_another_is_one_sentence(saved, mesh):
    metadata = saved / "5" / "_CHECKPOINT_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:100])
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError, match="there is no other checkpoint"):
        checkpoints.restore(abstract(mesh))
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        checkpoint.load_params(saved, step=5)


def test_weights_are_those_of_the_newest_checkpoint_that_is_whole(two, mesh, caplog):
    largest(two / "5").write_bytes(DAMAGE["zeros"](largest(two / "5").read_bytes()))
    step, params = checkpoint.newest_params(two)
    assert step == 4
    assert f"the one before it is taken, {two / '4'}" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, {k: np.asarray(x) for k, x in params.items()}, new_state(mesh, 4).ema)


def test_bits_are_not_compared_where_that_is_switched_off(two, monkeypatch):
    monkeypatch.setattr(checksums, "of_pieces", lambda _: pytest.fail("they were read"))
    monkeypatch.setenv("CINEMA_VERIFY_CHECKPOINTS", "0")
    assert checkpoint.find_damage(two / "5") is None


def test_sums_are_the_same_on_devices_and_in_pieces():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 50, 7)).astype(np.float32), np.full((), -5, np.int32)]
    arrays += [np.zeros((0, 3), np.float32), np.array([True, False]), np.asarray(jnp.ones((5, 3), jnp.bfloat16))]
    there = [tuple(map(int, sums)) for sums in checksums._on_devices([jnp.asarray(x) for x in arrays])]
    assert [checksums.of_pieces([x] if x.ndim == 0 else list(x[:, None])) for x in arrays] == there
    assert checksums.of_pieces([arrays[0][::-1]]) != there[0]


def test_numbers_of_eight_bytes_have_sums_of_both_halves():
    x = np.random.default_rng(0).standard_normal((3, 5))
    with jax.enable_x64(True):
        there = [tuple(map(int, sums)) for sums in checksums._on_devices([jnp.asarray(x)])]
    assert there == [checksums.of_pieces(list(x[:, None]))]
    changed = x.copy().view(np.uint32)
    changed[2, 0] ^= 1
    assert checksums.of_pieces([changed.view(np.float64)]) != there[0]
