"""What a plan says of hosts."""

import dataclasses
import json
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_sharding import on_eight_devices
from tiny import tiny_values

from cinema_jax.cinema import Cinema
from cinema_jax.config import parse
from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.devices import sharding
from cinema_jax.experiment.run import Run
from cinema_jax.planning import hosts, hosts_table, planner


def plan(folder, topology, stage="finetune", slices=0, bandwidth=1e9, **changes):
    """What a stage of the smallest run asks of the hosts of a topology, if a step takes 2 seconds."""
    values = tiny_values()
    values.stages, values.data.path = (stage,), "nowhere"
    values.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    run = Run(parse(values), folder)
    mesh = planner.mesh_of(run, planner.Target(topology, slices))
    planned = planner.train_program(run, stage, mesh)
    return hosts.measure(run, stage, topology, mesh, planned, hosts.Bound(2.0, "compute alone"), bandwidth)


def test_hosts_of_a_context_axis_load_the_same_rows_and_make_as_many_examples(tpus, tmp_path):
    asked = plan(tmp_path, "v5p:2x2x4", finetune__batch_size=32, mesh__context=8)
    assert (asked.hosts, asked.chips_per_host) == (4, 4)
    each, copies = asked.loading.rows, asked.loading.loaded
    # Each host's rows are the global batch's, as often as hosts share them.
    assert each[0] == each[1]
    assert asked.hosts * each[0] == 32 * copies[0]
    assert copies[0] == copies[1] > 1
    assert asked.loading.examples_per_second == each[1] / 2.0


def test_every_number_of_the_state_is_written_once_by_all_hosts_of_two_slices_together(tpus, tmp_path):
    asked = plan(tmp_path, "v5e:4x4", slices=2, finetune__batch_size=32, mesh__fsdp=4)
    values = tiny_values()
    run = Run(parse(values), tmp_path)
    mesh = sharding.make_mesh()
    state = planner.program.train_program(run, "finetune", mesh).state
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert asked.hosts == 8
    assert asked.storage.total_gib * 2**30 == pytest.approx(total)
    # Whole copies of the state lie in both slices.
    assert sum(asked.storage.restore_gib) / 2 * asked.hosts * 2**30 >= 2 * total


def test_time_of_a_checkpoint_is_its_bytes_at_the_bandwidth_that_was_named(tpus, tmp_path):
    asked = plan(tmp_path, "v5e:2x2", finetune__batch_size=4, bandwidth=2e6).storage
    assert asked.checkpoint_s == pytest.approx(asked.checkpoint_gib[1] * 2**30 / 2e6)
    assert asked.restore_s == pytest.approx(asked.restore_gib[1] * 2**30 / 2e6)
    assert asked.gb_per_second == 2e-3


SPECS = [
    ((8, 6), PartitionSpec()),
    ((3, 5), PartitionSpec()),
    ((), PartitionSpec()),
    ((8, 6), PartitionSpec("a")),
    ((2, 8), PartitionSpec(None, "b")),
    ((8, 4), PartitionSpec(("a", "b"))),
    ((6, 9), PartitionSpec("a")),
]

ORBAX = """
import json
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint._src.serialization import replica_slices
from test_plan_hosts import SPECS
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
found = []
for shape, spec in SPECS:
    array = jax.device_put(np.zeros(shape, np.float32), NamedSharding(mesh, spec))
    slices = replica_slices.get_replica_slices(array, replica_id=0, use_replica_parallel=True)
    bytes_of = dict.fromkeys(range(8), 0)
    for piece in slices.replica_slices:
        (device,) = piece.unsliced_data.devices()
        start, stop = (piece.slice_args.start_index, piece.slice_args.limit_index) if piece.slice_args else (0, 1)
        whole = piece.unsliced_data.nbytes
        share = (stop - start) / piece.unsliced_data.shape[piece.slice_args.axis] if piece.slice_args else 1
        bytes_of[device.id] += whole * share
    found.append(bytes_of)
print(json.dumps(found))
"""

OURS = """
import json
import math
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from cinema_jax.planning.hosts import written_shares
from test_plan_hosts import SPECS
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
found = []
for shape, spec in SPECS:
    place = NamedSharding(mesh, spec)
    size = math.prod(place.shard_shape(shape)) * 4
    found.append({device.id: size * share for device, share in written_shares(shape, place).items()})
print(json.dumps(found))
"""


def test_each_device_writes_what_orbax_makes_it_write():
    lines = on_eight_devices(ORBAX + OURS).splitlines()[-2:]
    assert json.loads(lines[0]) == json.loads(lines[1])


@pytest.mark.parametrize(
    ("stage", "source", "expected"),
    [
        ("finetune", "critters", {"latents in fp32": 4 * 2 * 4 * 4 * 4}),
        ("align", "critters", {}),
        ("finetune", "folder", {"latents in fp32": 4 * 2 * 4 * 4 * 4, "reference pictures": None}),
        ("align", "folder", {"reference pictures": None}),
        # A record is read whole, whatever of it is used.
        ("align", "records", {"latents in bf16": 2 * 2 * 4 * 4 * 4, "references": 3 * 32 * 32 * 4, "texts": 8 * 48}),
    ],
)
def test_what_is_read_for_an_example(tmp_path, stage, source, expected):
    values = tiny_values()
    values.stages, values.data.source, values.data.path = (stage,), source, "nowhere"
    run = Run(parse(values), tmp_path)
    cinema = planner.program.train_program(run, stage, sharding.make_mesh()).cinema
    assert hosts.read_bytes(run, stage, cinema) == expected


def test_unknown_sizes_are_null_in_json_and_said_in_the_table(tpus, tmp_path):
    asked = plan(tmp_path, "v5e:2x2", finetune__batch_size=4, data__source="folder", data__train_videos=0)
    assert asked.loading.read_mib["reference pictures"] is None
    assert asked.memory.latents_gib is None
    lines = hosts_table.table(asked)
    assert "reference pictures of unknown size" in lines
    assert "the file of encoded videos, if there is room unknown" in lines


def test_memory_of_workers_and_kept_records_grows_with_them(tpus, tmp_path):
    def memory(workers):
        options = {"data__source": "records", "data__workers": workers, "finetune__batch_size": 4}
        return plan(tmp_path, "v5e:2x2", **options).memory.run_gib

    few, many = memory(2), memory(6)
    assert many["6 worker processes"] == pytest.approx(3 * few["2 worker processes"])
    assert many["records kept after reading"] == pytest.approx(3 * few["records kept after reading"])


def test_a_host_without_the_memory_does_not_fit(tpus, tmp_path):
    asked = plan(tmp_path, "v5e:1x1")
    assert asked.fits
    full = dataclasses.replace(asked, memory=dataclasses.replace(asked.memory, most_gib=48.0))
    assert not full.fits
    assert full.excess == "finetune on v5e:1x1 needs 48.0 of 44.7 GiB a host"


def test_held_out_batches_that_do_not_split_lie_whole_on_every_chip(tpus, tmp_path):
    values = tiny_values()
    values.stages, values.finetune.batch_size = ("finetune",), 16
    target = planner.Target("v5e:4x4")
    mesh = planner.mesh_of(Run(parse(values), tmp_path), target)
    cinema = planner.train_program(Run(parse(values), tmp_path), "finetune", mesh).cinema

    def held_out(videos):
        values.data.validation_videos = videos
        run = Run(parse(values), tmp_path)
        return hosts.held_out_bytes(run, "finetune", Cinema(run.config, cinema.part_configs), mesh)

    assert held_out(8) == 8 * held_out(16) > 0


def test_held_out_batches_that_do_not_split_are_noted_with_a_number_that_would(tpus, tmp_path):
    (note,) = plan(tmp_path, "v5e:4x4", finetune__batch_size=16, data__validation_videos=8).notes[-1:]
    assert "held-out batches of 8 do not split over 16" in note
    assert "config.data.validation_videos = 16 would split" in note


@pytest.mark.parametrize(("threads", "rows"), [(3, 4), (12, 2), (0, 4)])
def test_a_loader_holds_no_more_examples_than_is_said(threads, rows):
    size, made, lock = 1 << 20, 0, threading.Condition()

    def make(entry, global_index, rng):
        nonlocal made
        example = {"x": np.zeros(size, np.uint8)}
        with lock:  # counted when its memory is held, as that is what is measured
            made += 1
            lock.notify_all()
        return example

    config = LoaderConfig(rows, num_threads=threads)
    tracemalloc.start()
    try:
        steps = Loader([100], make, config).steps(0)
        for _ in range(3):
            batch = next(steps)
        # All that it makes ahead while the third batch is in use: batches 4 and 5, and single examples.
        ahead = 5 * rows + config.ahead(rows) if threads else 3 * rows
        with lock:
            assert lock.wait_for(lambda: made >= ahead, timeout=60)
        held, peak = (x / size for x in tracemalloc.get_traced_memory())
        steps.close()
    finally:
        tracemalloc.stop()
    del batch
    assert made == ahead
    assert peak <= config.held(rows) + 1
    assert held >= (3 * rows + config.ahead(rows) if threads else rows) - 1


def test_scalars_and_arrays_on_all_devices_are_written_by_the_first_or_shared():
    mesh = Mesh(np.array(jax.devices()[:1]), "a")
    place = NamedSharding(mesh, PartitionSpec())
    tree = {"x": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)}
    assert hosts.shares(tree, mesh) == ({0: 12.0}, {0: 12.0})
