"""What chips send to each other in a compiled program, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "c64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)
_CONTINUED = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')
_WHILE = re.compile(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of a program.

    Attributes:
        kind: `all-gather` and so on; an all-reduce of which each chip keeps a part is a `reduce-scatter`.
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
    computations, entry = _computations(text)
    counts = _counts(computations, entry)
    found = []
    for name, lines in computations.items():
        for line in lines:
            match = _OPERATION.search(line)
            # Stretched over several fusions to overlap with other work, an operation is written again in each.
            if match and counts[name] and not _CONTINUED.search(line):
                found.append(_read(line, match, counts[name], scattered="all-reduce-scatter" in name))
    return sorted(found, key=lambda c: -c.total_bytes)


def summary(found: list[Collective]) -> dict[str, dict[str, int | float]]:
    """Count and wire bytes of a step, by kind."""
    kinds: dict[str, dict[str, int | float]] = defaultdict(lambda: {"count": 0, "wire_bytes": 0.0})
    for collective in found:
        kinds[collective.kind]["count"] += collective.count
        kinds[collective.kind]["wire_bytes"] += collective.total_bytes
    return dict(sorted(kinds.items()))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    current, entry = [], ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith("  "):
            current.append(line)
    return computations, entry


def _counts(computations: Mapping[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs."""
    calls = {name: list(_calls(lines, computations)) for name, lines in computations.items()}
    counts: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for called, turns in calls.get(name, ()):
            visit(called, times * turns)

    visit(entry, 1)
    return counts


def _calls(lines: list[str], computations: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
    for line in lines:
        turns = 1
        if match := _WHILE.search(line):
            known = _TRIPS.search(line)
            turns = int(known[1]) if known else _turns(computations[match[1]], computations[match[2]])
        for match in _CALLED.finditer(line):
            for name in match[1].split(","):
                yield name.strip().removeprefix("%"), turns


def _turns(condition: list[str], body: list[str]) -> int:
    """Of a loop that counts from 0 to a constant; 1 where it is another one."""
    tests, steps = _values(condition), _values(body)
    test = re.search(r"compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", _root(condition))
    if not test or (limit := _constant(tests.get(test[2], ""))) is None:
        return 1
    place = int(re.search(r"index=(\d+)", tests[test[1]])[1])
    # `/*index=5*/` stands between the operands of long tuples.
    operands = re.search(r" tuple\((.*?)\)", re.sub(r"/\*.*?\*/", "", _root(body)))[1].split(",")
    added = re.search(r" add\(%([\w.\-]+), %([\w.\-]+)\)", steps.get(operands[place].strip().removeprefix("%"), ""))
    step = next((n for name in (added.groups() if added else ()) if (n := _constant(steps.get(name, "")))), 1)
    return -(-limit // step)


def _root(lines: list[str]) -> str:
    return next(line for line in lines if line.lstrip().startswith("ROOT "))


def _values(lines: list[str]) -> dict[str, str]:
    """Name of each value to the line that makes it."""
    return {match[1]: line for line in lines if (match := re.match(r"\s+(?:ROOT )?%([\w.\-]+) =", line))}


def _constant(line: str) -> int | None:
    match = re.search(r" constant\((\d+)\)", line)
    return int(match[1]) if match else None


def _read(line: str, match: re.Match, count: int, scattered: bool) -> Collective:
    shapes, kind, size = match[1], match[2], _group_size(line)
    arrays = [f"{dtype}[{dims}]" for dtype, dims in _ARRAY.findall(shapes)]
    if kind == "collective-permute" or "-start(" in match[0]:
        # Source, destination and flags.
        arrays = arrays[: max(1, len([a for a in arrays if not a.startswith("u32[]")]) // 2)]
    sizes = [_nbytes(array) for array in arrays]
    share = (size - 1) / size
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
        wire = share * sum(sizes)
    elif kind == "reduce-scatter":
        wire = share * size * sum(sizes)
    else:
        wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * sum(sizes)
    scope = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, count, wire, " ".join(arrays[:3]), scope[1] if scope else "")


def _nbytes(array: str) -> int:
    dtype, dims = _ARRAY.match(array).groups()
    width = _BYTES.get(dtype) or int(re.search(r"\d+", dtype)[0]) // 8
    return width * math.prod(int(d) for d in dims.split(",") if d)


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
