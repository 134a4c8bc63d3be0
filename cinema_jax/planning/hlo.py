"""The text of a compiled program (`jax.stages.Compiled.as_text()`): its computations, and how often each runs."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)
_WHILE = re.compile(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "token": 0, "opaque": 0}


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one that the program begins with."""
    computations: dict[str, list[str]] = {}
    current, entry = [], ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith("  "):
            current.append(line)
    return computations, entry


def counts(
    computations: Mapping[str, list[str]], entry: str, follow: Callable[[str], bool] = lambda line: True
) -> dict[str, int]:
    """How often each computation runs.

    Args:
        follow: whether what a line calls is a computation to count.

    A loop whose number of turns the compiler does not know counts once.
    """
    calls = {name: list(_calls(filter(follow, lines), computations)) for name, lines in computations.items()}
    found: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        found[name] += times
        for called, turns in calls.get(name, ()):
            visit(called, times * turns)

    visit(entry, 1)
    return found


def _calls(lines: Iterator[str], computations: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
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


def element_bytes(dtype: str) -> int:
    """Of one number of a type as it is written, for example bf16 or f8e4m3fn."""
    width = _BYTES.get(dtype)
    return int(re.search(r"\d+", dtype)[0]) // 8 if width is None else width


def dimensions(dims: str) -> list[int]:
    """The numbers of "8,128"; none of ""."""
    return [int(size) for size in dims.split(",") if size]


def nbytes(array: str) -> int:
    """Of an array as it is written, for example bf16[8,128]."""
    dtype, dims = re.match(r"(\w+)\[([\d,]*)\]", array).groups()
    return element_bytes(dtype) * math.prod(dimensions(dims))
