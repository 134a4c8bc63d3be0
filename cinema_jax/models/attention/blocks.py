"""How many queries and keys attention on TPUs holds in a core's fast memory at once."""

import dataclasses

from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import BlockSizes

# Every block is a power of two, at least this: the lanes of the chip.
LANES = 128
# A block may add this share of padding to a sequence; else the next smaller one is taken.
_MAX_PADDING = 1 / 32


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks of one pass.

    Attributes:
        queries: queries of a block.
        keys: keys that are loaded at once.
        keys_at_once: keys that are multiplied at once; divides `keys`.
    """

    queries: int
    keys: int
    keys_at_once: int


# Device kind -> head size -> (forward, backward).
#
# None of these was timed: nobody has run this on a TPU yet. They are guesses, larger where a core has more fast memory,
# and all that is known of them is that the compiler accepts them for their generation, in 16 and 32 bits.
# `python -m cinema_jax.models.attention.tune` finds better ones on the chip itself, and prints the row.
TABLE: dict[str, dict[int, tuple[Blocks, Blocks]]] = {
    "TPU v4": {
        64: (Blocks(1024, 1024, 512), Blocks(512, 1024, 512)),
        128: (Blocks(1024, 1024, 512), Blocks(512, 1024, 512)),
    },
    "TPU v5 lite": {
        64: (Blocks(1024, 1024, 512), Blocks(512, 1024, 512)),
        128: (Blocks(1024, 1024, 512), Blocks(512, 1024, 512)),
    },
    # v5p.
    "TPU v5": {
        64: (Blocks(1024, 1024, 512), Blocks(1024, 1024, 512)),
        128: (Blocks(1024, 1024, 512), Blocks(1024, 1024, 512)),
    },
    "TPU v6 lite": {
        64: (Blocks(2048, 2048, 512), Blocks(1024, 1024, 512)),
        128: (Blocks(2048, 2048, 512), Blocks(1024, 1024, 512)),
    },
}
# For every other chip and head size.
DEFAULT = (Blocks(512, 512, 512), Blocks(512, 512, 512))


def block_sizes(device_kind: str, head_size: int, queries: int, keys: int) -> BlockSizes:
    """The table's blocks for a chip, made smaller where they would pad so many queries and keys by much."""
    forward, backward = TABLE.get(device_kind, {}).get(head_size, DEFAULT)
    return fit(forward, backward, queries, keys)


def fit(forward: Blocks, backward: Blocks, queries: int, keys: int) -> BlockSizes:
    """Blocks of both passes, none larger than what so many queries and keys are padded to a multiple of."""
    q = _multiple(max(forward.queries, backward.queries), queries)
    kv = _multiple(max(forward.keys, backward.keys), keys)
    return BlockSizes(
        block_q=min(forward.queries, q),
        block_kv=min(forward.keys, kv),
        block_kv_compute=min(forward.keys_at_once, kv),
        block_q_dkv=min(backward.queries, q),
        block_kv_dkv=min(backward.keys, kv),
        block_kv_dkv_compute=min(backward.keys_at_once, kv),
        block_q_dq=min(backward.queries, q),
        block_kv_dq=min(backward.keys, kv),
    )


def padded(blocks: BlockSizes, queries: int, keys: int) -> tuple[int, int]:
    """So many queries and keys filled up to whole blocks."""
    q, kv = max(blocks.block_q, blocks.block_q_dkv), max(blocks.block_kv, blocks.block_kv_dkv)
    return queries + -queries % q, keys + -keys % kv


def _multiple(block: int, tokens: int) -> int:
    """The largest power of two up to `block` that pads `tokens` by little, or `LANES`."""
    while block > LANES and -tokens % block > tokens * _MAX_PADDING:
        block //= 2
    return block


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sizes of one pass of attention by transposed logits.

    Attributes:
        queries: queries of a block.
        keys: keys of a block.
        queries_at_once: queries of a tile, whose logits are one product; divides `queries`.
        keys_at_once: keys of a tile; divides `keys`.
    """

    queries: int
    keys: int
    queries_at_once: int
    keys_at_once: int


# Device kind -> (forward, backward). By the compiler's schedules (`benchmarks/schedules.py`) the fastest of those whose
# program is no longer than splash attention's: twice the block would be 3 % faster there, but instructions have to be
# loaded as well. Chips that are missing here take splash.
TRANSPOSED: dict[str, tuple[Tiles, Tiles]] = {
    "TPU v5 lite": (Tiles(1024, 1024, 512, 128), Tiles(1024, 1024, 512, 128)),
    "TPU v5": (Tiles(1024, 1024, 512, 128), Tiles(1024, 1024, 512, 128)),
    "TPU v6 lite": (Tiles(1024, 1024, 512, 256), Tiles(1024, 1024, 256, 256)),
}


def tiles(device_kind: str, queries: int, keys: int) -> tuple[Tiles, Tiles]:
    """The table's for a chip, made smaller where they would pad so many queries and keys by much."""
    return tuple(
        Tiles(
            block_q := _multiple(one.queries, queries),
            block_kv := _multiple(one.keys, keys),
            min(one.queries_at_once, block_q),
            min(one.keys_at_once, block_kv),
        )
        for one in TRANSPOSED.get(device_kind, TRANSPOSED["TPU v5"])
    )
