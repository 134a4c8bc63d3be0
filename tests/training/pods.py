"""Devices of simulated hosts in the order in which real slices have them.

On a slice a host is a block of the torus, and a mesh follows the torus: the rows of a host are not neighbours.
`topologies.json` holds what libtpu says of some small slices, in the order of `jax.devices()`:

python pods.py    writes it anew
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

STORED = Path(__file__).with_name("topologies.json")
# (generation and shape of a slice, how many slices) that tests run; the hosts of all have four chips.
SIMULATED = (("v5p:2x2x2", 1), ("v5e:4x4", 1), ("v5p:2x2x4", 1), ("v5e:4x8", 1), ("v5p:2x2x2", 2), ("v5e:4x4", 2))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `mesh_utils` asks of a device."""

    id: int
    process_index: int
    coords: tuple[int, ...]
    device_kind: str
    core_on_chip: int = 0
    platform: str = "tpu"


def name_of(shape: str, slices: int) -> str:
    """For instance `2 x v5e:4x4`."""
    return f"{slices} x {shape}"


def chips(topology: str) -> list[Chip]:
    """Those of a stored topology, in the order of `jax.devices()`."""
    stored = json.loads(STORED.read_text())[topology]
    return [
        Chip(number, process, tuple(coords), stored["kind"])
        for number, (process, coords) in enumerate(stored["devices"])
    ]


def described(devices: list[Any]) -> dict[str, Any]:
    """What is stored of the devices of a topology."""
    return {"kind": devices[0].device_kind, "devices": [[d.process_index, list(d.coords)] for d in devices]}


def arrange(topology: str) -> None:
    """From now on this process's meshes order the devices of all processes as those of a topology would be."""
    create, twins = mesh_utils.create_device_mesh, chips(topology)

    def arranged(shape: tuple[int, ...], devices: list[Any], **options: Any) -> np.ndarray:
        # Asked for here: no process may look for devices before all have met.
        ours = jax.devices()
        assert [device.process_index for device in ours] == [chip.process_index for chip in twins]
        chip_of = dict(zip(ours, twins, strict=True))
        placed = create(shape, [chip_of[device] for device in devices], **options)
        return np.vectorize(lambda chip: ours[chip.id], otypes=[object])(placed)

    mesh_utils.create_device_mesh = arranged


if __name__ == "__main__":
    from cinema_jax.planning import planner

    found = {name_of(*slices): described(planner.devices(*slices)) for slices in SIMULATED}
    STORED.write_text(json.dumps(found) + "\n")
