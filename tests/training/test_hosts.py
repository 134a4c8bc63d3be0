"""Runs of several processes: that they train like one device, who names a lost one, and how they go on elsewhere."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from float64 import BATCH, STEPS, write_frozen
from hosts import SIMULATED
from launched import checkpoints, rows, state, train

from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import complete_steps


def batches(workdir: Path) -> list[list[int]]:
    """The examples of all processes, in the order of their numbers."""
    lines = Path(f"{workdir}.batches").read_text().splitlines()
    return sorted(index for line in lines for index in json.loads(line))


@pytest.fixture(scope="module")
def whole(meshes):
    """An undisturbed run of two processes, whose rows are not neighbours, beside what it is compared with."""
    workdir = meshes / "whole"
    assert [status for status, _ in train(workdir)] == [0, 0]
    return workdir


def test_two_processes_train_like_one_device(whole, meshes):
    one, found = np.load(meshes / "0.npz"), state(whole)
    told = [(row["loss"], row["grad_norm"]) for row in rows(whole) if "loss" in row]
    np.testing.assert_allclose(told, one["told"], rtol=1e-9)
    assert {name for name in found if not name.startswith("opt_state")} == set(one.files) - {"told"}
    for name in set(one.files) - {"told"}:
        np.testing.assert_allclose(found[name], one[name], rtol=1e-9, atol=1e-9, err_msg=name)


def assert_closes_like_one_device(run, meshes):
    """With the same held-out loss."""
    one, closing = np.load(meshes / "closing.npz"), rows(run)[-1]
    assert one["eval_loss"] > 0
    for name in set(one.files) - {"sampled"}:
        np.testing.assert_allclose(closing[name], one[name], rtol=1e-9, err_msg=name)


def test_two_processes_evaluate_and_sample_like_one_device(whole, meshes):
    assert_closes_like_one_device(whole, meshes)
    sampled = np.load(f"{whole}.sampled.npy")
    assert np.std(sampled) > 0.1
    np.testing.assert_allclose(sampled, np.load(meshes / "closing.npz")["sampled"], rtol=1e-9, atol=1e-9)


@pytest.mark.release
def test_what_ends_one_process_ends_the_others_with_its_sentence_and_status(whole):
    run = whole.with_name("data")
    ended = train(run, "data", 3, "1")
    assert [status for status, _ in ended] == [2, 2]
    assert "error: videos/7.mp4: no such file" in ended[1][1]
    assert re.search(r"error: process 1 of 2 \(.+\) ended: videos/7\.mp4: no such file", ended[0][1])


@pytest.mark.release
@pytest.mark.parametrize(
    ("moment", "statuses", "told"),
    [
        (
            "kill",
            [1, -signal.SIGKILL],
            r"process 1 of 2 \(.+\) gives no sign of life for \d+ s; its last was in .*finetune",
        ),
        ("hang", [1, 1], r"process 1 of 2 \(.+\) is behind: it has been in the data of step 3 of finetune for \d+ s"),
        ("disk", [2, 2], r"error: process 1 of 2 \(.+\) ended: .*File too large"),
        ("version", [2, 2], r"error: all hosts must be alike\n  process 1 of 2 \(.+\): optax is '0\.0\.1', and '"),
    ],
)
def test_the_process_that_failed_is_named_by_the_other(whole, moment, statuses, told):
    ended = train(whole.with_name(moment), moment, 3, "1")
    assert [status for status, _ in ended] == statuses
    assert re.search(told, ended[0][1])


@pytest.mark.parametrize("slices", ["8 devices", pytest.param("v5e:4x4", marks=pytest.mark.release)])
def test_a_run_goes_on_with_other_hosts(whole, meshes, slices):
    run = whole.with_name(f"on {slices}")
    shutil.copytree(whole, run)
    shutil.rmtree(run / "stages")
    for step in complete_steps(checkpoints(run)):
        if step > 4:
            shutil.rmtree(checkpoints(run) / str(step))
    assert {status for status, _ in train(run, slices=slices)} == {0}
    assert batches(run) == [index for index in batches(whole) if index >= 4 * BATCH]
    found = state(run)
    for path, leaf in state(whole).items():
        assert leaf.dtype == np.float64 or leaf.ndim == 0
        np.testing.assert_allclose(found[path], leaf, rtol=1e-9, atol=1e-9, err_msg=path)
    assert_closes_like_one_device(run, meshes)


# (where a run starts and loses a host, where it goes on after that)
ROADS = (
    ("v5e:4x4, 16", "v5p:2x2x4, 16"),
    ("v5p:2x2x4, 16", "v5e:4x8, 16"),
    ("v5e:4x8, 16", "v5e:4x4, shared"),
    ("v5e:4x4, shared", "2 x v5p:2x2x2, 16"),
    ("2 x v5p:2x2x2, 16", "2 x v5e:4x4, 16"),
    ("2 x v5e:4x4, 16", "v5e:4x4, 16"),
)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """An undisturbed run on one device, with a batch of 16."""
    folder = tmp_path_factory.mktemp("pods")
    write_frozen(folder)
    assert [status for status, _ in train(folder / "one", slices="one device, 16")] == [0]
    return folder / "one"


@pytest.mark.release
@pytest.mark.parametrize(("first", "second"), ROADS, ids=[" then ".join(road) for road in ROADS])
def test_a_slice_loses_a_host_and_another_one_ends_the_run_like_one_device(one_device, first, second):
    run, lost = one_device.with_name(f"{first} then {second}"), str(SIMULATED[first].processes - 1)
    ended = train(run, "kill", 4, lost, slices=first)
    assert ended[int(lost)][0] == -signal.SIGKILL
    assert not {status for status, _ in ended[:-1]} & {0, 2}
    assert 0 < max(complete_steps(checkpoints(run))) < STEPS
    assert {status for status, _ in train(run, slices=second)} == {0}
    expected, found, largest = state(one_device), state(run), 0.0
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-9, atol=1e-9, err_msg=path)
        largest = max(largest, float(np.abs(found[path] - leaf).max()))
    for told, one in zip(rows(run), rows(one_device), strict=True):
        assert told.keys() == one.keys()
        # Where no sample of a step has a time in a bucket, its loss is None: NaN here.
        found, wanted = (np.array([row[name] for name in told if name != "stage"], float) for row in (told, one))
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
    np.testing.assert_allclose(
        np.load(f"{run}.sampled.npy"), np.load(f"{one_device}.sampled.npy"), rtol=1e-9, atol=1e-9
    )
    print(f"\n| {first} | {second} | {largest:.1e} |")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"process_id": 1}, r"--process_id without --coordinator \(or JAX_COORDINATOR_ADDRESS\) and --num_processes"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "it must be from 0 to 1"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "--num_processes is 0; it must be 1 or more"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "it must be host:port"),
    ],
)
def test_misused_flags_are_told_in_one_sentence(flags, told):
    with pytest.raises(InputError, match=told):
        distributed.start(**flags)


@pytest.mark.parametrize(
    ("said", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, False),
        (
            dict.fromkeys(
                ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"), "1"
            ),
            False,
        ),
        (
            dict.fromkeys(
                ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"), "2"
            ),
            True,
        ),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"JAX_PLATFORMS": "", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_PLATFORMS": "", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"JAX_PLATFORMS": "tpu,cpu", "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_clusters_are_known_by_their_environment(monkeypatch, said, several):
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    monkeypatch.setattr(distributed.os, "environ", {"TPU_SKIP_MDS_QUERY": "1"} | said)
    assert distributed._in_cluster() == several
