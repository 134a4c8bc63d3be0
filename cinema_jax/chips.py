"""What chips can do, by their makers' public specifications."""

import dataclasses

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
    """

    kind: str
    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    link_bandwidth: float


# By the generation's name in a topology (`v5p:4x4x4`).
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 31.25, 1228e9, 300e9),
    "v5e": Chip("TPU v5 lite", 197e12, 15.75, 819e9, 200e9),
    "v5p": Chip("TPU v5", 459e12, 95.0, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 918e12, 31.25, 1640e9, 448e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x4`.

    Raises:
        InputError: it is of no such form, or of an unknown generation.
    """
    generation, _, sizes = topology.partition(":")
    if generation not in CHIPS or not sizes or not all(size.isdigit() for size in sizes.split("x")):
        raise InputError(
            f"--topology is {topology!r}; accepted is a generation ({', '.join(CHIPS)}) and its chips, "
            "for example v5p:4x4x4 or v6e:8x8"
        )
    return CHIPS[generation]
