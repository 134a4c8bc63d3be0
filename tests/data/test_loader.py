import itertools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import process_environment
from worked import Dying, Environment, Examples

import cinema_jax.data
from cinema_jax.commands import command
from cinema_jax.data.loader import Loader, LoaderConfig, Order, global_indices
from cinema_jax.data.worker import example_rng
from cinema_jax.errors import InputError

SIZE = 23


def loader(rows=None, corrupt=(), on_failure=None, **config):
    config = {"global_batch": 8, "seed": 3, "num_threads": 2, **config}
    return Loader((SIZE,), Examples(corrupt), LoaderConfig(**config), rows=rows, on_failure=on_failure)


def batches(loader, start=0, stop=6):
    return [batch for _, batch in loader.steps(start, stop)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def of_rows(batches, rows):
    return [{name: x[list(rows)] for name, x in batch.items()} for batch in batches]


# Blocks, every second one, and as libtpu orders v5e:4x4; of the last two hosts hold the same rows.
HOSTS = [
    [range(8)],
    [range(4), range(4, 8)],
    [range(0, 8, 2), range(1, 8, 2)],
    [(0, 1, 6, 7), (2, 3, 4, 5), (2, 3, 4, 5)],
    [(7,), (0, 3), (1, 2, 4, 5, 6)],
]


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("corrupt", [(), (0, 5, 7, 20)])
def test_each_host_loads_its_rows_of_the_same_global_batches(hosts, corrupt):
    whole = batches(loader(corrupt=corrupt))
    for rows in hosts:
        assert_same(batches(loader(rows, corrupt)), of_rows(whole, rows))
    for step, batch in enumerate(whole):
        assert batch["index"].dtype == np.int32
        assert (batch["index"] == global_indices(step, 8)).all()


@pytest.mark.parametrize("threads", [0, 2])
def test_starting_at_a_step_continues_exactly_there(threads):
    whole = batches(loader(num_threads=threads))
    assert_same(batches(loader(num_threads=threads), start=4), whole[4:])
    assert [step for step, _ in loader(num_threads=threads).steps(4, 6)] == [4, 5]
    endless = loader(num_threads=threads).steps(2)
    assert_same([batch for _, batch in itertools.islice(endless, 3)], whole[2:5])
    endless.close()


def test_another_batch_size_sees_the_same_examples():
    eights = batches(loader(), stop=6)
    twelves = batches(loader(global_batch=12), stop=4)
    for name in ("entry", "noise", "index"):
        left, right = (np.concatenate([batch[name] for batch in parts]) for parts in (eights, twelves))
        assert np.array_equal(left, right)


def test_worker_processes_change_nothing_and_never_import_jax():
    config = LoaderConfig(global_batch=8, seed=3, num_threads=1, num_workers=2)
    made = Loader((SIZE,), Environment(Examples((5,))), config, rows=(2, 5, 6))
    found = batches(made, stop=3)
    processes = {tuple(row) for batch in found for row in batch.pop("process")}
    assert_same(found, batches(loader((2, 5, 6), corrupt=(5,)), stop=3))
    assert all(process != os.getpid() and not with_jax for process, with_jax in processes)
    assert all(ended(process) for process, _ in processes)


def test_a_killed_worker_is_one_sentence_on_which_launchers_start_again(capsys, monkeypatch):
    made = Loader((SIZE,), Dying(), LoaderConfig(global_batch=8, num_threads=1, num_workers=1, shuffle=False))
    # What commands do with an error of any kind.
    monkeypatch.setattr(command.app, "run", lambda entry, flags_parser: entry([]))
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: batches(made, stop=2))
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: a process that loads data was killed")
    assert "config.data.workers (1 now)" in said
    assert "Traceback" not in said


def ended(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_workers_end_when_their_parent_is_killed():
    command = [sys.executable, "-c", "import time, worked; worked.start(); time.sleep(60)"]
    environment = process_environment()
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    process = int(parent.stdout.readline())
    assert not ended(process)
    parent.kill()
    deadline = time.time() + 20
    while not ended(process):
        assert time.time() < deadline, "the worker lives on"
        time.sleep(0.1)


@pytest.mark.parametrize("seed", [0, 7])
def test_every_epoch_is_another_permutation_of_the_dataset(seed):
    order = Order(SIZE, seed, True)
    epochs = [tuple(order[epoch * SIZE + i] for i in range(SIZE)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len(set(epochs)) == 4
    assert epochs[0] != tuple(Order(SIZE, seed + 1, True)[i] for i in range(SIZE))


def test_without_shuffling_the_dataset_is_walked_in_order():
    order = Order(5, 0, False)
    assert [order[i] for i in range(12)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_corrupt_entries_are_counted_reported_and_replaced():
    calls = []
    made = loader(corrupt=(4, 9), on_failure=lambda *failure: calls.append(failure))
    found = batches(made)
    entries = np.concatenate([batch["entry"] for batch in found])
    order = Order(SIZE, 3, True)
    expected = [order[i] for i in range(48)]
    assert not set(entries.tolist()) & {4, 9}
    assert all(a == b for a, b in zip(entries.tolist(), expected, strict=True) if b not in (4, 9))
    assert made.failures == {4: "entry 4 is corrupt", 9: "entry 9 is corrupt"}
    assert made.replaced == len(calls) >= sum(entry in (4, 9) for entry in expected)
    assert all(made.failures[entry] == message for _, entry, message in calls)
    replaced = {index for index, _, _ in calls}
    assert {i for i, entry in enumerate(expected) if entry in (4, 9)} == replaced


def test_a_dataset_without_readable_entries_stops_with_the_reason():
    with pytest.raises(InputError, match=r"8 examples in a row could not be read; the last one: entry \d+ is corrupt"):
        batches(loader(corrupt=range(SIZE)))


def test_other_errors_are_not_taken_for_corrupt_data():
    def fail(index, global_index, rng):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        batches(Loader((SIZE,), fail, LoaderConfig(global_batch=4)))


def test_random_numbers_depend_on_seed_purpose_and_example_alone():
    draws = {
        (seed, purpose, index, attempt): example_rng(seed, purpose, index, attempt).uniform()
        for seed in (0, 1)
        for purpose in ("train", "validation")
        for index in (0, 1, 2**31)
        for attempt in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    assert example_rng(0, "train", 5).uniform() == example_rng(0, "train", 5).uniform()


def test_bad_configurations_are_refused_by_name():
    with pytest.raises(ValueError, match=r"LoaderConfig\.global_batch is 0"):
        LoaderConfig(global_batch=0)
    for rows in ((6, 8), (-1, 0), ()):
        with pytest.raises(ValueError, match=r"Loader\.rows is \(.*\); it must name rows from 0 to 7"):
            loader(rows)
    with pytest.raises(ValueError, match="at least 1 example"):
        Loader((0,), Examples(), LoaderConfig(global_batch=2))


def test_input_errors_travel_between_processes():
    assert str(pickle.loads(pickle.dumps(InputError("one sentence")))) == "one sentence"


def test_what_worker_processes_import_does_not_bring_jax():
    data = Path(cinema_jax.data.__file__).parent
    modules = [".".join(path.relative_to(data).with_suffix("").parts) for path in data.rglob("*.py")]
    # The loader itself runs Grain, in the main process.
    names = [f"cinema_jax.data.{name}" for name in modules if name != "loader" and not name.endswith("__init__")]
    # A worker process imports the program's main module too.
    names += ["cinema_jax.train", "cinema_jax.config", "cinema_jax.models.qwen_vl.processing"]
    script = f"import sys, {', '.join(names)}; print([m for m in sys.modules if m.split('.')[0] in ('jax', 'flax')])"
    environment = process_environment()
    assert subprocess.check_output([sys.executable, "-c", script], text=True, env=environment).strip() == "[]"
