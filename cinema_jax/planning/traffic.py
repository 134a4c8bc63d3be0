"""What a compiled program reads from and writes to a chip's main memory, read from its text."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cinema_jax.planning import hlo
from cinema_jax.planning.collectives import KINDS

_OPERATION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)(.*)$")
# Type, sizes, and the layout: order of the axes, then tiles and memory space (none is the main memory).
_ARRAY = re.compile(r"\w+\[[\d,]*\](?:\{[^{}]*\})?")
_PARTS = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(.*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
# They name memory and move nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "opt-barrier"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


class _Operation(NamedTuple):
    name: str
    shape: str
    kind: str
    arguments: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)


_Computations = Mapping[str, Sequence[_Operation]]


def bytes_moved(text: str) -> int:
    """Bytes between a chip's main memory and the rest of it in one run of a program, turns of loops multiplied.

    Every operation, a fusion as one, reads its operands and writes its result, as far as they lie in the main memory;
    of a slice or an update only the part that moves. What a kernel reads more than once is counted once.
    """
    lines, entry = hlo.computations(text)
    computations = {name: [op for line in lines[name] if (op := _parse(line))] for name in lines}
    counts = hlo.counts(lines, entry, follow=lambda line: " fusion(" not in line and " to_apply=" not in line)
    return sum(times * _of_computation(computations[name], computations) for name, times in counts.items())


def _parse(line: str) -> _Operation | None:
    match = _OPERATION.match(line)
    return _Operation(*match.groups()[1:], root=bool(match[1])) if match else None


def _of_computation(operations: Sequence[_Operation], computations: _Computations) -> int:
    shapes = {op.name: op.shape for op in operations}
    moving = (op for op in operations if op.kind not in _FREE and not op.kind.endswith(("-done", "-update")))
    return sum(_moved(op, shapes, computations) for op in moving)


def _moved(op: _Operation, shapes: Mapping[str, str], computations: _Computations) -> int:
    if op.kind == "fusion":
        read = (min(_size(shapes[x]), _read(op, i, computations)) for i, x in enumerate(op.operands))
        return sum(read) + _written(op, computations)
    if op.kind in _SLICES:
        return 2 * _size(op.shape)
    if op.kind == "dynamic-update-slice":
        return 2 * _size(shapes[op.operands[1]])
    if op.kind == "slice-start":
        # (the whole, the slice, a flag): the slice is read, and written if it stays in this memory.
        piece = _ARRAY.findall(op.shape)[1]
        return _size(piece, everywhere=True) + _size(piece)
    if op.kind.endswith("-start"):
        # Operands and results both stand in its shape.
        return _size(op.shape)
    return _size(op.shape) + sum(_size(shapes[x]) for x in op.operands)


def _read(fusion: _Operation, index: int, computations: _Computations) -> int:
    """At most what a fusion reads of its operand `index`."""
    inside = _inside(fusion, computations)
    parameter = next(op for op in inside if op.kind == "parameter" and op.arguments == str(index))
    return _used(parameter, inside, computations)


def _used(value: _Operation, inside: Sequence[_Operation], computations: _Computations) -> int:
    total = 0
    for op in inside:
        for place, operand in enumerate(op.operands):
            if operand != value.name:
                continue
            if op.kind == "bitcast":
                total += _used(op, inside, computations)
            elif op.kind == "fusion":
                total += _read(op, place, computations)
            elif op.kind in _SLICES:
                total += _size(op.shape, everywhere=True) if place == 0 else 0
            elif op.kind not in ("tuple", *KINDS) and (op.kind != "dynamic-update-slice" or place):
                total += _size(value.shape, everywhere=True)
    return total


def _written(fusion: _Operation, computations: _Computations) -> int:
    inside = {op.name: op for op in _inside(fusion, computations)}
    root = next(op for op in inside.values() if op.root)
    results = [inside[x] for x in root.operands] if root.kind == "tuple" else [root]
    arrays, total = _ARRAY.findall(fusion.shape), 0
    if len(arrays) != len(results):
        # One operation of several results.
        return _size(fusion.shape)
    for i, (result, array) in enumerate(zip(results, arrays, strict=True)):
        while result.kind == "bitcast":
            result = inside[result.operands[0]]
        if result.kind == "dynamic-update-slice":
            total += min(_size(array), _size(inside[result.operands[1]].shape, everywhere=True))
        elif f"{{{i if root.kind == 'tuple' else ''}}}: (" not in fusion.rest:
            # Others are aliases of operands: a collective's buffers, handed on while it goes on beside the fusion.
            total += _size(array)
    return total


def _inside(fusion: _Operation, computations: _Computations) -> Sequence[_Operation]:
    return computations[re.search(r"calls=%([\w.\-]+)", fusion.rest)[1]]


def _size(shape: str, everywhere: bool = False) -> int:
    """Bytes of the arrays of a shape that lie in the main memory, with what tiles add to their axes."""
    total = 0
    for array in _ARRAY.findall(shape):
        dtype, dims, order, layout = _PARTS.match(array).groups(default="")
        if "S(" in layout and not everywhere:
            continue
        sizes = hlo.dimensions(dims)
        if tile := _TILE.search(layout):
            for axis, unit in zip(hlo.dimensions(order), reversed(hlo.dimensions(tile[1])), strict=False):
                sizes[axis] = -(-sizes[axis] // unit) * unit
        total += hlo.element_bytes(dtype) * math.prod(sizes)
    return total
