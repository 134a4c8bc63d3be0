import ast
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import cinema_jax.data
from cinema_jax.data.loader import Loader, LoaderConfig, Order, example_rng, global_indices
from cinema_jax.errors import InputError

SIZE = 23


class Examples:
    """Says which entry it was made from and with which random numbers; some entries cannot be read."""

    def __init__(self, corrupt=()):
        self.corrupt = frozenset(corrupt)

    def __call__(self, index, global_index, rng):
        if index in self.corrupt:
            raise InputError(f"entry {index} is corrupt")
        return {"entry": np.int32(index), "noise": rng.uniform(size=3)}


def loader(rows=None, corrupt=(), on_failure=None, **config):
    config = {"global_batch": 8, "seed": 3, "num_threads": 2, **config}
    return Loader(SIZE, Examples(corrupt), LoaderConfig(**config), rows=rows, on_failure=on_failure)


def batches(loader, start=0, stop=6):
    return [batch for _, batch in loader.steps(start, stop)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def joined(hosts):
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("corrupt", [(), (0, 5, 7, 20)])
def test_any_number_of_hosts_loads_the_same_global_batches(hosts, corrupt):
    whole = batches(loader(corrupt=corrupt))
    rows = 8 // hosts
    parts = [batches(loader(slice(i * rows, (i + 1) * rows), corrupt)) for i in range(hosts)]
    assert_same(joined(parts), whole)
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


def test_worker_processes_change_nothing_and_claim_no_accelerator(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    config = LoaderConfig(global_batch=8, seed=3, num_threads=1, num_workers=2)
    made = Loader(SIZE, Environment(Examples((5,))), config, rows=slice(2, 6))
    found = batches(made, stop=3)
    platforms = {text.tobytes().rstrip(b"\0") for batch in found for text in batch.pop("process")}
    assert_same(found, batches(loader(slice(2, 6), corrupt=(5,)), stop=3))
    assert len(platforms) == 2
    assert all(text.endswith(b"cpu") and not text.startswith(str(os.getpid()).encode()) for text in platforms)


class Environment:
    """Adds the process and the platform that jax would use there."""

    def __init__(self, make):
        self.make = make

    def __call__(self, index, global_index, rng):
        text = f"{os.getpid()} {os.environ.get('JAX_PLATFORMS')}".encode().ljust(32, b"\0")
        return {**self.make(index, global_index, rng), "process": np.frombuffer(text, np.uint8)}


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
        batches(Loader(SIZE, fail, LoaderConfig(global_batch=4)))


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
    for rows in (slice(0, 8, 2), slice(4, 4)):
        with pytest.raises(ValueError, match=r"Loader\.rows is slice.*contiguous"):
            loader(rows)
    with pytest.raises(ValueError, match="at least 1 example"):
        Loader(0, Examples(), LoaderConfig(global_batch=2))


def test_input_errors_travel_between_processes():
    assert str(pickle.loads(pickle.dumps(InputError("one sentence")))) == "one sentence"


def test_no_module_of_the_data_room_imports_jax():
    for path in Path(cinema_jax.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("jax", "flax") for name in names), path
