"""Cycles of attention kernels on TPUs that are not there, read from the schedules that libtpu compiles for them.

    python -m benchmarks.schedules --chips=v5p,v5e,v6e --head-sizes=64,128

A kernel's time on its core, once its blocks are in fast memory, is written in its compiled program: a bundle of
instructions a cycle. The longest stretch without a branch is one block of logits, and is printed as cycles for 1024 x
1024 of them. "peak" is the share of that time in which full multipliers would do the products of the model, two forward
and four backward: what the kernel multiplies again does not count, nor do the halves of a multiplier that stay empty.

Left out: waiting for blocks that are still being copied (DMA), the start and the end of a row of blocks, and what runs
between kernels; the rest of a step of the grid is a column of its own. So this is a lower bound of time.
"""

import dataclasses
import itertools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cinema_jax.models.attention.blocks import block_sizes, tiles
from cinema_jax.models.attention.splash import splash
from cinema_jax.models.attention.transposed import transposed

CHIPS = flags.DEFINE_list("chips", ["v5p", "v5e", "v6e"], "Generations of TPUs.")
HEAD_SIZES = flags.DEFINE_list("head-sizes", ["64", "128"], "Sizes of a head.")
KERNELS = flags.DEFINE_list("kernels", ["splash", "transposed"], "Backends of attention.")
BACKENDS = {"splash": splash, "transposed": transposed}
TOKENS, HEADS = 8192, 2
# Each generation's smallest topology, and the multiply-adds that one of its cores does in a cycle: flops / (2 x cores x
# clock) of 1.75 GHz, 1.5 GHz and 1.75 GHz, which are also what the schedules take for products of whole multipliers.
TOPOLOGIES = {"v5p": ("v5p:2x2x1", 4 * 128**2), "v5e": ("v5e:2x2", 4 * 128**2), "v6e": ("v6e:2x2", 4 * 256**2)}
BLOCK = 1024**2
# The bundles before the compiler turns empty ones into delays, and what each uses of every unit.
_BUNDLES, _UNITS = "-packed-bundles-post-ra.txt", "-pre-delay_hlo-static-per-bundle-utilization.txt"
_BUNDLE = re.compile(r"\s*(?:0x)?([0-9a-f]+)\s+(?:[A-Z]{2})?\s*:")
_BRANCH = re.compile(r"sbr\.rel.*?target bundleno = (\d+)")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Of one compiled kernel.

    Attributes:
        cycles: bundles of its longest stretch without a branch, empty ones included.
        rest: the loop's other bundles that no branch skips, as every step of the grid runs them.
        busy: the share of `cycles` in which the units of each kind work, by the compiler's name for them.
        spills: the share of the stores of those cycles that only put registers aside.
    """

    cycles: int
    rest: int
    busy: dict[str, float]
    spills: float


def schedule(bundles: str, units: str) -> Schedule:
    """From libtpu's texts of one kernel: its bundles, and a line for each of them of how many of which unit it uses."""
    last, branches = 0, {}
    for line in bundles.splitlines():
        if found := _BUNDLE.match(line):
            last = int(found[1], 16)
            if branch := _BRANCH.search(line):
                branches[last] = int(branch[1])
    cuts = sorted({0, last + 1, *(at + 1 for at in branches), *branches.values()})
    start, end = max(itertools.pairwise(cuts), key=lambda piece: piece[1] - piece[0])
    names, limits, *rows = (re.split(r"[ ,]+", line.strip()) for line in units.splitlines() if "==" not in line)
    used = {name: sum(int(row[i]) for row in rows[start:end]) for i, name in enumerate(names)}
    busy = {name: used[name] / int(limit) / (end - start) for name, limit in zip(names, limits, strict=True)}
    loop = max(((target, at) for at, target in branches.items() if target <= at), key=lambda x: x[1] - x[0])
    # What a branch may skip, unless the block is in it too.
    aside = [range(at + 1, target) for at, target in branches.items() if not at < start < target]
    skipped = {x for piece in (*aside, range(start, end)) for x in piece}
    rest = sum(x not in skipped for x in range(loop[0], loop[1] + 1))
    return Schedule(end - start, rest, busy, used["VSTORE:SPILL"] / max(used["VSTORE"], 1))


def schedules(function: Callable[..., jax.Array], *inputs: jax.ShapeDtypeStruct, dump: Path) -> dict[str, Schedule]:
    """Of all Pallas kernels of a function, by their names; `dump` is the folder where libtpu writes."""
    for path in dump.iterdir():
        path.unlink()
    text = jax.jit(function).lower(*inputs).compile().as_text()
    found = {}
    for name in re.findall(r"%(\S+) = [^\n]*custom_call_target=\"tpu_custom_call\"", text):
        bundles, units = (next(dump.glob(f"*-{name}-[0-9]*{ending}")) for ending in (_BUNDLES, _UNITS))
        found[re.sub(r"\.\d+$", "", name)] = schedule(bundles.read_text(), units.read_text())
    return found


def mesh_of(chip: str) -> Mesh:
    """One device of a generation, which need not be there."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip][0]).devices
    return jax.make_mesh((1,), ("one",), devices=devices[:1])


def areas(backend: str, kind: str, size: int) -> dict[str, int]:
    """Logits of a block of each of a backend's kernels, by a part of the kernel's name."""
    if backend == "transposed":
        forward, backward = tiles(kind, TOKENS, TOKENS)
        return {"forward": forward.queries * forward.keys, "backward": backward.queries * backward.keys}
    blocks = block_sizes(kind, size, TOKENS, TOKENS)
    return {
        "fwd": blocks.block_q * blocks.block_kv,
        "dq": blocks.block_q_dq * blocks.block_kv_dq,
        "dkv": blocks.block_q_dkv * blocks.block_kv_dkv,
    }


def report(chip: str, size: int, backend: str, dump: Path) -> None:
    """Rows of a table: a line for each kernel of attention with lengths, and one for their sum."""
    mesh, total = mesh_of(chip), 0.0

    def loss(q, k, v, lengths):
        return BACKENDS[backend](q, k, v, lengths, None, causal=False, scale=size**-0.5).astype(jnp.float32).sum()

    place = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((1, TOKENS, HEADS, size), jnp.bfloat16, sharding=place)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=place)
    with jax.set_mesh(mesh):
        found = schedules(jax.grad(loss, argnums=(0, 1, 2)), x, x, x, lengths, dump=dump)
    for part, area in areas(backend, mesh.devices.item().device_kind, size).items():
        one = next(one for name, one in found.items() if f"_{part}" in name)
        cycles = one.cycles * BLOCK / area
        total += cycles
        busy = " | ".join(f"{one.busy[unit]:.0%}" for unit in ("MATMUL", "VALU", "EUP", "VSTORE"))
        print(f"| {chip} | {size} | {backend} {part} | {cycles:,.0f} | | {one.rest} | {busy} | {one.spills:.0%} |")
    peak = 6 * BLOCK * size / TOPOLOGIES[chip][1] / total
    print(f"| {chip} | {size} | {backend}, both | {total:,.0f} | {peak:.0%} | | | | | | |", flush=True)


def main(_):
    print("| chip | head | kernel | cycles | peak | rest | MXU | VPU | exp | stores | spills |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        for chip in CHIPS.value:
            for size in HEAD_SIZES.value:
                for backend in KERNELS.value:
                    report(chip, int(size), backend, Path(folder))


if __name__ == "__main__":
    app.run(main)
