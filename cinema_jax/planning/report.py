"""What a compiled program says about itself, as numbers, JSON and a table."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from cinema_jax import sharding
from cinema_jax.axes import BATCH, DATA, STATE, WEIGHTS
from cinema_jax.chips import Chip
from cinema_jax.planning.collectives import BETWEEN_SLICES, Collective, collectives, summary
from cinema_jax.planning.program import Program
from cinema_jax.planning.traffic import bytes_moved

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one program on one mesh; sizes in GiB for each chip, bytes for each chip and step.

    Attributes:
        fits: whether `hbm_gib` is within `hbm_limit_gib`.
        hbm_gib: all that the program holds at its peak, by parts in `memory_gib`.
        wire_gib: what each chip sends in a step over the links of its slice.
        between_slices_gib: what it sends to other slices, over the data centre's network.
        ideal_wire_gib: trained parameters gathered twice in bf16 and their gradients reduced once, (across copies of
            the state, each gradient shard all-reduced), and frozen parts gathered once.
        flops: floating-point operations of the products of a step on all chips, recomputation included.
        hbm_traffic_gib: what each chip reads from and writes to its main memory, as `traffic.bytes_moved` counts.
        seconds: lower bounds of a step's time, by what bounds it.
    """

    program: str
    topology: str
    mesh: dict[str, int]
    batch: int
    remat: str
    fits: bool
    hbm_gib: float
    hbm_limit_gib: float
    memory_gib: dict[str, float]
    wire_gib: float
    between_slices_gib: float
    ideal_wire_gib: dict[str, float]
    collectives: dict[str, dict[str, int | float]]
    largest: list[str]
    flops: float
    hbm_traffic_gib: float
    seconds: dict[str, float]
    trace_s: float
    compile_s: float

    @property
    def bound(self) -> str:
        """What takes longest, if all else hides behind it."""
        return max(self.seconds, key=self.seconds.__getitem__)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self) | {"bound": self.bound}


def memory(program: Program, mesh: Mesh, total: float) -> dict[str, float]:
    """GiB of each chip by what they are for: the rest of `total` are activations, gradients and the batch."""
    parts = {"frozen parts": dict(program.frozen)}
    if program.state is not None:
        parts |= {
            "trained parameters": program.state.params,
            "average (EMA)": program.state.ema,
            "optimizer moments": program.state.opt_state,
        }
    sizes = {}
    for name, tree in parts.items():
        split = WEIGHTS if name == "frozen parts" else STATE
        sizes[name] = sum(p.bytes_per_device for p in sharding.placements(tree, mesh, split)) / GIB
    return sizes | {"activations and the rest": total - sum(sizes.values())}


def ideal_wire(program: Program, mesh: Mesh) -> dict[str, float]:
    """What each chip must send in a step, in GiB: see `Report.ideal_wire_gib`."""
    parts = math.prod(mesh.shape[axis] for axis in WEIGHTS)
    copies = mesh.shape[DATA]
    share = (parts - 1) / parts
    trained = sum(math.prod(x.shape) for x in program.state.params.values()) if program.state else 0
    # Vocabularies are looked up where they lie, and an output layer that no step uses is not moved.
    frozen = sum(
        math.prod(x.shape) for path, x in program.frozen.items() if not path.endswith(("embedding", "lm_head/kernel"))
    )
    return {
        "trained": 2 * trained * (3 * share + 2 * (copies - 1) / copies / parts) / GIB,
        "frozen": 2 * frozen * share / GIB,
    }


def report(
    name: str,
    topology: str,
    chip: Chip,
    mesh: Mesh,
    program: Program,
    compiled: jax.stages.Compiled | None,
    *,
    hbm_gib: float,
    batch: int,
    remat: str,
    flops: float,
    trace_s: float,
    compile_s: float,
) -> Report:
    """Everything about a program that was compiled, or of which `None` says that it does not fit."""
    text = compiled.as_text() if compiled else ""
    found, moved = (collectives(text), bytes_moved(text)) if text else ([], 0)
    between = sum(c.total_bytes for c in found if c.kind == BETWEEN_SLICES)
    wire = sum(c.total_bytes for c in found) - between
    return Report(
        program=name,
        topology=topology,
        mesh=dict(mesh.shape),
        batch=batch,
        remat=remat,
        fits=compiled is not None and hbm_gib <= chip.hbm_gib,
        hbm_gib=hbm_gib,
        hbm_limit_gib=chip.hbm_gib,
        memory_gib=memory(program, mesh, hbm_gib),
        wire_gib=wire / GIB,
        between_slices_gib=between / GIB,
        ideal_wire_gib=ideal_wire(program, mesh),
        collectives=summary(found),
        largest=[_line(c) for c in found[:5]],
        flops=flops,
        hbm_traffic_gib=moved / GIB,
        seconds={
            "compute": flops / mesh.size / chip.flops,
            "HBM": moved / chip.hbm_bandwidth,
            "links": wire / chip.link_bandwidth,
        },
        trace_s=trace_s,
        compile_s=compile_s,
    )


def _rates(chip: Chip) -> tuple[str, str, str]:
    return (
        f"{chip.flops / 1e12:.0f} TFLOP/s of bf16",
        f"{chip.hbm_bandwidth / 1e9:.0f} GB/s",
        f"{chip.link_bandwidth / 1e9:.0f} GB/s over all links",
    )


def _line(collective: Collective) -> str:
    return (
        f"{collective.kind} x {collective.count}: {collective.total_bytes / GIB:.2f} GiB "
        f"({collective.array}; {collective.where[-60:]})"
    )


def table(result: Report, chip: Chip) -> str:
    """For people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    verdict = "fits" if result.fits else "does NOT fit"
    free = result.hbm_limit_gib - result.hbm_gib
    lines = [
        f"{result.program} on {result.topology}: {math.prod(result.mesh.values())} chips ({chip.kind}), mesh {mesh}",
        f"batch {result.batch} over {math.prod(result.mesh[a] for a in BATCH)} rows, remat {result.remat}",
        "",
        f"{verdict}: {result.hbm_gib:.2f} of {result.hbm_limit_gib:.2f} GiB a chip ({free:+.2f} free)",
        *(f"  {name:<30} {size:8.2f} GiB" for name, size in result.memory_gib.items()),
        "",
        f"sent by each chip in a step: {result.wire_gib:.2f} GiB; needed at least: "
        + ", ".join(f"{name} {size:.2f}" for name, size in result.ideal_wire_gib.items()),
        *(
            f"  {kind:<20} x {int(value['count']):<6} {value['wire_bytes'] / GIB:8.2f} GiB"
            for kind, value in result.collectives.items()
        ),
        *(f"    {line}" for line in result.largest),
        "",
        f"{result.flops / 1e12:,.0f} TFLOP a step on all chips, recomputation included",
        f"a step takes at least {result.seconds[result.bound]:.3f} s, bound by {result.bound}, if the rest overlaps:",
        *(
            f"  {name:<8} {seconds:8.3f} s  {seconds / result.seconds[result.bound]:4.0%} of the bound, at {rate}"
            for (name, seconds), rate in zip(result.seconds.items(), _rates(chip), strict=True)
        ),
        f"  HBM: {result.hbm_traffic_gib:.1f} GiB that the program's operations read and write, kernels' once.",
        "  No run reaches these rates; what does not overlap is added.",
        "",
        f"traced in {result.trace_s:.1f} s, compiled in {result.compile_s:.0f} s",
    ]
    return "\n".join(lines)
