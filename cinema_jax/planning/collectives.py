"""What chips send to each other in a compiled program, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict

from cinema_jax.planning import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
# What goes over the data centre's network is handed to the host.
BETWEEN_SLICES = "between slices"
_SENT = re.compile(r" = (.*?) send\(.*_xla_host_transfer_handler_name=.xla_megascale_runtime")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CONTINUED = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of a program.

    Attributes:
        kind: `all-gather` and so on; an all-reduce of which each chip keeps a part is a `reduce-scatter`; what one
            slice sends to others, of whatever kind, is `BETWEEN_SLICES`.
        count: how often a step runs it, turns of loops multiplied.
        wire_bytes: what each chip sends in one run of it, by a ring.
        where: the name scope that it comes from.
    """

    kind: str
    count: int
    wire_bytes: float
    array: str
    where: str

    @property
    def total_bytes(self) -> float:
        """What each chip sends in a step."""
        return self.count * self.wire_bytes


def collectives(text: str) -> list[Collective]:
    """All of them in the text of a compiled program (`jax.stages.Compiled.as_text()`), the largest first.

    A loop whose number of turns the compiler does not know counts once.
    """
    computations, entry = hlo.computations(text)
    counts = hlo.counts(computations, entry)
    found = []
    for name, lines in computations.items():
        for line in lines:
            match = _OPERATION.search(line)
            # Stretched over several fusions to overlap with other work, an operation is written again in each.
            if match and counts[name] and not _CONTINUED.search(line):
                found.append(_read(line, match, counts[name], scattered="all-reduce-scatter" in name))
            elif (match := _SENT.search(line)) and counts[name]:
                array = _ARRAY.search(match[1])[0]
                found.append(Collective(BETWEEN_SLICES, counts[name], float(hlo.nbytes(array)), array, _scope(line)))
    return sorted(found, key=lambda c: -c.total_bytes)


def summary(found: list[Collective]) -> dict[str, dict[str, int | float]]:
    """Count and wire bytes of a step, by kind."""
    kinds: dict[str, dict[str, int | float]] = defaultdict(lambda: {"count": 0, "wire_bytes": 0.0})
    for collective in found:
        kinds[collective.kind]["count"] += collective.count
        kinds[collective.kind]["wire_bytes"] += collective.total_bytes
    return dict(sorted(kinds.items()))


def _read(line: str, match: re.Match, count: int, scattered: bool) -> Collective:
    shapes, kind, size = match[1], match[2], _group_size(line)
    arrays = [f"{dtype}[{dims}]" for dtype, dims in _ARRAY.findall(shapes)]
    if "-start(" in match[0]:
        arrays = _results(kind, arrays)
    sizes = [hlo.nbytes(array) for array in arrays]
    share = (size - 1) / size
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
        wire = share * sum(sizes)
    elif kind == "reduce-scatter":
        wire = share * size * sum(sizes)
    else:
        wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * sum(sizes)
    return Collective(kind, count, wire, " ".join(arrays[:3]), _scope(line))


def _results(kind: str, arrays: list[str]) -> list[str]:
    """Of the arrays in the shape of an operation that only starts: operands, as many results, and flags.

    An all-reduce, which needs no other room for its results, has them alone.
    """
    arrays = [array for array in arrays if not array.endswith("[]") or kind == "all-reduce"]
    return arrays if kind == "all-reduce" else arrays[len(arrays) // 2 :]


def _scope(line: str) -> str:
    match = re.search(r'op_name="([^"]*)"', line)
    return match[1] if match else ""


def _group_size(line: str) -> int:
    """How many chips take part in each exchange."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']*)'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if "source_target_pairs=" in line:
        return 2
    raise ValueError(f"the groups of a collective are written in a way that is not known here: {line.strip()[:400]}")
