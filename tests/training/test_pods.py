"""What every host of a real slice holds, loads, writes and reads, on topologies where nothing can run here."""

import functools
import importlib.util
import itertools
import json
import math

import jax
import numpy as np
import pods
import pytest
from tiny import environment_of_tpus

from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.devices import sharding
from cinema_jax.devices.axes import BATCH
from cinema_jax.errors import InputError
from cinema_jax.planning import planner
from cinema_jax.training import latents

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

# Shape, slices, and the mesh of each slice: as they are for the released sizes, and with tokens and features split too.
SLICES = (
    ("v5e:4x4", 1, {"fsdp": 16}),
    ("v5e:4x4", 1, {"data": 2, "fsdp": 2, "context": 4}),
    ("v5p:2x2x4", 1, {"fsdp": 16}),
    ("v5e:4x8", 1, {"data": 8, "fsdp": 2, "context": 2}),
    ("v5p:2x2x2", 2, {"data": 2, "fsdp": 2, "tensor": 2}),
    ("v5p:4x4x4", 1, {"data": 4, "fsdp": 16}),
    ("v5p:4x4x4", 1, {"fsdp": 16, "context": 2, "tensor": 2}),
    ("v5e:8x16", 1, {"data": 8, "fsdp": 16}),
    ("v5e:16x16", 1, {"data": 16, "fsdp": 16}),
    ("v6e:16x16", 1, {"data": 16, "fsdp": 4, "context": 4}),
    ("v5p:4x4x8", 2, {"data": 8, "fsdp": 16}),
)
NAMES = [
    f"{slices} x {shape}, {' x '.join(f'{axis} {size}' for axis, size in mesh.items())}"
    for shape, slices, mesh in SLICES
]
# (path, shape) of arrays that are split over all axes, over few of them, unevenly, and not at all.
ARRAYS = {
    "dit/blocks/to_q/kernel": (2, 512, 768),
    "dit/blocks/down/kernel": (2, 768, 512),
    "t5/token_embedding": (640, 512),
    "vae/decoder/conv_in/kernel": (3, 3, 3, 4, 48),
    "aligner/latents": (15, 24),
}


@pytest.fixture(scope="module", autouse=True)
def environment():
    with environment_of_tpus():
        yield


@functools.cache
def mesh_of(shape, slices, **sizes):
    return sharding.make_mesh(slice=slices, **({"data": 1} | sizes), devices=planner.devices(shape, slices))


def hosts_of(mesh):
    """The devices of each host, with their coordinates in the mesh."""
    hosts = {}
    for place, device in np.ndenumerate(mesh.devices):
        hosts.setdefault(device.process_index, []).append((place, device))
    return hosts


@needs_libtpu
@pytest.mark.parametrize(("shape", "slices", "sizes"), SLICES, ids=NAMES)
def test_every_host_loads_the_rows_that_its_devices_compute(shape, slices, sizes):
    mesh = mesh_of(shape, slices, **sizes)
    grid = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))
    parts = math.prod(grid[axis] for axis in BATCH)
    size = 2 * parts
    held = sharding.host_rows(mesh, size)
    assert list(held) == list(range(len(hosts_of(mesh))))
    for host, devices in hosts_of(mesh).items():
        expected = set()
        for place, _ in devices:
            at = dict(zip(mesh.axis_names, place, strict=True))
            part = (at["slice"] * grid["data"] + at["data"]) * grid["fsdp"] + at["fsdp"]
            expected |= {2 * part, 2 * part + 1}
        assert held[host] == tuple(sorted(expected))
    config = LoaderConfig(size, seed=1, num_threads=0)
    shown = [Loader((size,), lambda entry, *_: {"entry": np.int32(entry)}, config, rows=rows) for rows in held.values()]
    loaded = [(int(i), int(e)) for host in shown for i, e in zip(*next(host.steps(3, 4))[1].values(), strict=True)]
    # All of the epoch, and each as often as hosts share its row.
    copies = sum(map(len, held.values())) // size
    assert sorted(entry for entry, _ in set(loaded)) == list(range(size))
    assert len(loaded) == copies * size


@needs_libtpu
@pytest.mark.parametrize(("shape", "slices", "sizes"), SLICES, ids=NAMES)
def test_the_hosts_write_and_read_every_part_of_the_state(shape, slices, sizes):
    mesh = mesh_of(shape, slices, **sizes)
    tree = {path: jax.ShapeDtypeStruct(array, np.float32) for path, array in ARRAYS.items()}
    for path, place in sharding.shardings(tree, mesh).items():
        array = ARRAYS[path]
        seen, devices = np.zeros(array, np.int32), {}
        for device, index in place.devices_indices_map(array).items():
            devices.setdefault(tuple(s.indices(n) for s, n in zip(index, array, strict=True)), []).append(device)
        for index in devices:
            seen[tuple(slice(*s) for s in index)] += 1
        # The pieces tile the array, and as many devices hold each: one of them writes it, and all read it.
        assert (seen == 1).all(), path
        assert {len(holders) for holders in devices.values()} == {mesh.size // len(devices)}, path
        assert math.prod(place.shard_shape(array)) * len(devices) == math.prod(array)


@needs_libtpu
@pytest.mark.parametrize(("shape", "slices"), sorted({(shape, slices) for shape, slices, _ in SLICES}))
def test_every_host_has_a_mesh_of_its_own_chips_for_encoding(shape, slices):
    hosts = itertools.groupby(planner.devices(shape, slices), lambda device: device.process_index)
    for host, devices in hosts:
        devices = list(devices)
        local = sharding.make_mesh(devices=devices)
        assert set(local.devices.flat) == set(devices)
        assert sharding.host_rows(local, 8) == {host: tuple(range(8))}


@pytest.mark.parametrize("hosts", [1, 4, 16, 64])
@pytest.mark.parametrize("videos", [0, 3, 64, 1000])
def test_every_video_is_encoded_by_one_host(hosts, videos):
    todo = range(10, 10 + videos)
    assert [index for host in range(hosts) for index in latents._of_process(todo, host, hosts)] == list(todo)


@needs_libtpu
def test_the_stored_orders_are_those_of_libtpu():
    found = {pods.name_of(*slices): pods.described(planner.devices(*slices)) for slices in pods.SIMULATED}
    assert json.loads(pods.STORED.read_text()) == found


@needs_libtpu
def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(InputError, match="a batch of 8 does not split into slice x data x fsdp = 16"):
        sharding.host_rows(mesh_of("v5e:4x4", 1, fsdp=16), 8)


def test_a_batch_of_too_few_rows_is_a_mistake():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="this process holds 4 rows of a batch of 4, and was given 3"):
        sharding.global_batch({"x": np.zeros(3)}, mesh, 4)
