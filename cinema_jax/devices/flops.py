"""Counting the multiplications of a program, from its definition and not from what a compiler made of it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of the matrix products and convolutions in one call, two for a multiply-add.

    Args:
        function: traceable by jax; if it contains `jax.checkpoint`, the recomputation counts, as it is executed.
        arguments: arrays or `jax.ShapeDtypeStruct`s.

    Loops count as often as they run. The two branches of a condition count as the larger one.

    Raises:
        NotImplementedError: for a loop whose number of turns is not known beforehand and that contains products.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left, out = equation.invars[0].aval, equation.outvars[0].aval
        return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval, equation.outvars[0].aval
        outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(out.shape) * math.prod(kernel.shape) // outputs
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(parameters)]
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise NotImplementedError("a while loop contains matrix products; only loops of known length can be counted")
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def _inner(parameters: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs that an equation runs."""
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
