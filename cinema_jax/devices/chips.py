"""What chips and their hosts can do, by their makers' public specifications, and which slices of them there are."""

import dataclasses
import math
from collections.abc import Mapping

from cinema_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        kind: what jax calls it (`device.device_kind`).
        flops: dense bf16 products, operations a second.
        hbm_gib: memory that a program may use: the chip's own, less what the runtime keeps.
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second that a chip sends over all its links to its neighbours.
        host_gb: memory (10^9 bytes) of a host by how many of these chips it has.
        most_chips: of one slice.
        solid: whether slices have three dimensions.
    """

    kind: str
    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    link_bandwidth: float
    host_gb: Mapping[int, int]
    most_chips: int
    solid: bool


# By the generation's name in a topology (`v5p:4x4x4`). The hosts are the machine types of cloud.google.com/tpu/docs:
# v4's, ct5lp-hightpu-{1,4,8}t, ct5p-hightpu-4t and ct6e-standard-{1,4,8}t. A v4 chip's two cores are one device.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 30.75, 1228e9, 300e9, {4: 407}, 4096, True),
    "v5e": Chip("TPU v5 lite", 197e12, 15.75, 819e9, 200e9, {1: 48, 4: 192, 8: 384}, 256, False),
    "v5p": Chip("TPU v5", 459e12, 95.0, 2765e9, 600e9, {4: 448}, 6144, True),
    "v6e": Chip("TPU v6 lite", 918e12, 31.25, 1640e9, 448e9, {1: 176, 4: 720, 8: 1440}, 256, False),
}
FLAT_SHAPES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Parts of a cube of 4x4x4. Larger slices are made of whole cubes.
SOLID_SHAPES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x4`; `launch/topology.sh` takes the same ones.

    Raises:
        InputError: it is of no such form, of an unknown generation, or of a shape that this generation does not have.
    """
    generation, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if generation not in CHIPS or not all(size.isdecimal() for size in sizes):
        raise InputError(
            f"--topology is {topology!r}; accepted is a generation ({', '.join(CHIPS)}) and its chips, "
            "for example v5p:4x4x4 or v6e:8x8"
        )
    chip = CHIPS[generation]
    if chip.solid and not (shape in SOLID_SHAPES or _of_cubes(sizes, chip.most_chips)):
        raise InputError(
            f"--topology is {topology!r}; {generation} has the shapes {', '.join(SOLID_SHAPES)}, and AxBxC of "
            f"multiples of 4 with A <= B <= C and at most {chip.most_chips} chips"
        )
    if not chip.solid and shape not in FLAT_SHAPES:
        raise InputError(f"--topology is {topology!r}; {generation} has the shapes {', '.join(FLAT_SHAPES)}")
    return chip


def chip_count(topology: str) -> int:
    """Of a slice."""
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def host_shape(topology: str) -> tuple[int, int, int]:
    """How the chips of one host lie. A flat slice of up to eight is one host's; all others have hosts of four."""
    chip, sizes = chip_of(topology), [int(size) for size in topology.partition(":")[2].split("x")]
    return (*sizes, 1) if not chip.solid and chip_count(topology) <= 8 else (2, 2, 1)


def _of_cubes(sizes: list[str], most: int) -> bool:
    numbers = [int(size) for size in sizes]
    whole = all(number and number % 4 == 0 and str(number) == size for number, size in zip(numbers, sizes, strict=True))
    return len(numbers) == 3 and whole and numbers == sorted(numbers) and math.prod(numbers) <= most
