"""What a compiled program says about itself, as numbers, JSON and a table."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from cinema_jax.devices import sharding
from cinema_jax.devices.axes import BATCH, DATA, STATE, WEIGHTS
from cinema_jax.devices.chips import Chip
from cinema_jax.planning import hosts_table
from cinema_jax.planning.collectives import BETWEEN_SLICES, Collective, collectives, summary
from cinema_jax.planning.hosts import GIB, Hosts
from cinema_jax.planning.program import Program
from cinema_jax.planning.traffic import bytes_moved


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one program on one mesh; sizes in GiB for each chip, bytes for each chip and step.

    What only a compiled program says is None, not known, of one that the compiler refused for want of memory.

    Attributes:
        fits: whether `hbm_gib` is within `hbm_limit_gib`.
        hbm_gib: all that the chip holds at the program's peak, by parts in `memory_gib`.
        wire_gib: what each chip sends in a step over the links of its slice.
        between_slices_gib: what it sends to other slices, over the data centre's network.
        ideal_wire_gib: trained parameters gathered twice in bf16 and their gradients reduced once, (across copies of
            the state, each gradient shard all-reduced), and frozen parts gathered once.
        flops: floating-point operations of the products of a step on all chips, recomputation included.
        hbm_traffic_gib: what each chip reads from and writes to its main memory, as `traffic.bytes_moved` counts.
        seconds: lower bounds of a step's time, by what bounds it.
        hosts: what a train step asks of the hosts.
    """

    program: str
    topology: str
    mesh: dict[str, int]
    batch: int
    remat: str
    fits: bool
    hbm_gib: float | None
    hbm_limit_gib: float
    memory_gib: dict[str, float]
    wire_gib: float | None
    between_slices_gib: float | None
    ideal_wire_gib: dict[str, float]
    collectives: dict[str, dict[str, int | float]] | None
    largest: list[str] | None
    flops: float
    hbm_traffic_gib: float | None
    seconds: dict[str, float | None]
    trace_s: float
    compile_s: float
    hosts: Hosts | None = None

    @property
    def bound(self) -> str | None:
        """What takes longest, if all else hides behind it; None: not known."""
        return None if None in self.seconds.values() else max(self.seconds, key=self.seconds.__getitem__)

    @property
    def excess(self) -> str:
        """What it needs and there is not, in a sentence's words."""
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        needed = "more than" if self.hbm_gib is None else f"{self.hbm_gib:.2f} of"
        return (
            f"{self.program} on {self.topology} (mesh {mesh}, batch {self.batch}, remat {self.remat}) needs {needed} "
            f"{self.hbm_limit_gib:.2f} GiB a chip"
        )

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self) | {"bound": self.bound}


def memory(program: Program, mesh: Mesh | AbstractMesh) -> dict[str, float]:
    """GiB of each chip by what they are for, activations, gradients and the batch aside."""
    parts = {"frozen parts": {path: x for path, x in program.frozen.items() if not sharding.is_away(x)}}
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
    return sizes


def ideal_wire(program: Program, mesh: Mesh | AbstractMesh) -> dict[str, float]:
    """What each chip must send in a step, in GiB: see `Report.ideal_wire_gib`."""
    parts = math.prod(mesh.shape[axis] for axis in WEIGHTS)
    copies = mesh.shape[DATA]
    share = (parts - 1) / parts
    trained = sum(math.prod(x.shape) for x in program.state.params.values()) if program.state else 0
    # Vocabularies are looked up where they lie, and an output layer that no step uses is not moved.
    frozen = sum(
        math.prod(x.shape) * min(2, x.dtype.itemsize)
        for path, x in program.frozen.items()
        if path not in program.beside and not path.endswith(("embedding", "lm_head/kernel"))
    )
    return {
        "trained": 2 * trained * (3 * share + 2 * (copies - 1) / copies / parts) / GIB,
        "frozen": frozen * share / GIB,
    }


def report(
    name: str,
    topology: str,
    chip: Chip,
    mesh: Mesh | AbstractMesh,
    program: Program,
    compiled: jax.stages.Compiled | None,
    *,
    program_gib: float | None,
    held_out_gib: float,
    batch: int,
    remat: str,
    flops: float,
    trace_s: float,
    compile_s: float,
) -> Report:
    """Everything about a program that was compiled, or of which `None` says that it does not fit.

    Args:
        program_gib: what the program needs on each chip; None: the compiler does not say.
        held_out_gib: what lies there beside it.
    """
    parts = memory(program, mesh)
    rest = {} if program_gib is None else {"activations and the rest": program_gib - sum(parts.values())}
    total = None if program_gib is None else program_gib + held_out_gib
    seconds = {"compute": flops / mesh.size / chip.flops, "HBM": None, "links": None}
    text = compiled.as_text() if compiled else None
    found, moved, between, wire = collectives(text) if text else None, None, None, None
    if found is not None:
        moved = bytes_moved(text)
        between = sum(c.total_bytes for c in found if c.kind == BETWEEN_SLICES)
        wire = sum(c.total_bytes for c in found) - between
        seconds |= {"HBM": moved / chip.hbm_bandwidth, "links": wire / chip.link_bandwidth}
    return Report(
        program=name,
        topology=topology,
        mesh=dict(mesh.shape),
        batch=batch,
        remat=remat,
        fits=compiled is not None and total <= chip.hbm_gib,
        hbm_gib=total,
        hbm_limit_gib=chip.hbm_gib,
        memory_gib=parts | rest | ({"held-out batches, at most": held_out_gib} if held_out_gib else {}),
        wire_gib=_gib(wire),
        between_slices_gib=_gib(between),
        ideal_wire_gib=ideal_wire(program, mesh),
        collectives=None if found is None else summary(found),
        largest=None if found is None else [_line(c) for c in found[:5]],
        flops=flops,
        hbm_traffic_gib=_gib(moved),
        seconds=seconds,
        trace_s=trace_s,
        compile_s=compile_s,
    )


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GIB


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
    lines = [
        f"{result.program} on {result.topology}: {math.prod(result.mesh.values())} chips ({chip.kind}), mesh {mesh}",
        f"batch {result.batch} over {math.prod(result.mesh[a] for a in BATCH)} rows, remat {result.remat}",
        "",
        _verdict(result),
        *(f"  {name:<30} {size:8.2f} GiB" for name, size in result.memory_gib.items()),
        "",
        *_traffic(result),
        "",
        f"{result.flops / 1e12:,.0f} TFLOP a step on all chips, recomputation included",
        *_times(result, chip),
        "",
        *([hosts_table.table(result.hosts), ""] if result.hosts else []),
        f"traced in {result.trace_s:.1f} s, compiled in {result.compile_s:.0f} s",
    ]
    return "\n".join(lines)


def _verdict(result: Report) -> str:
    if result.hbm_gib is None:
        return f"does NOT fit: more than {result.hbm_limit_gib:.2f} GiB a chip; how much is unknown"
    free = result.hbm_limit_gib - result.hbm_gib
    verdict = "fits" if result.fits else "does NOT fit"
    return f"{verdict}: {result.hbm_gib:.2f} of {result.hbm_limit_gib:.2f} GiB a chip ({free:+.2f} free)"


def _traffic(result: Report) -> list[str]:
    sent = "unknown" if result.wire_gib is None else f"{result.wire_gib:.2f} GiB"
    least = ", ".join(f"{name} {size:.2f}" for name, size in result.ideal_wire_gib.items())
    kinds = result.collectives or {}
    return [
        f"sent by each chip in a step: {sent}; needed at least: {least}",
        *(f"  {k:<20} x {int(v['count']):<6} {v['wire_bytes'] / GIB:8.2f} GiB" for k, v in kinds.items()),
        *(f"    {line}" for line in result.largest or []),
    ]


def _times(result: Report, chip: Chip) -> list[str]:
    rates = zip(result.seconds.items(), _rates(chip), strict=True)
    if result.bound is None:
        known = {name: "unknown" if x is None else f"at least {x:.3f} s at {rate}" for (name, x), rate in rates}
        return ["what bounds a step is unknown:", *(f"  {name:<8} {said}" for name, said in known.items())]
    longest = result.seconds[result.bound]
    return [
        f"a step takes at least {longest:.3f} s, bound by {result.bound}, if the rest overlaps:",
        *(
            f"  {name:<8} {seconds:8.3f} s  {seconds / longest:4.0%} of the bound, at {rate}"
            for (name, seconds), rate in rates
        ),
        f"  HBM: {result.hbm_traffic_gib:.1f} GiB that the program's operations read and write, kernels' once.",
        "  No run reaches these rates; what does not overlap is added.",
    ]
