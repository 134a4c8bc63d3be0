"""Layers shared by the models."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def stack_layers(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` independently initialised copies as one module whose every parameter has a leading `layer` axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build_all(rngs):
        return build(rngs)

    return build_all(rngs)


def scan_layers(
    layers: nnx.Module,
    x: Any,
    apply: Callable[[nnx.Module, Any], Any],
    *,
    count: int | None = None,
    remat: bool = False,
) -> Any:
    """Run stacked layers one after the other: `x = apply(layer, x)`, for the first `count` layers (default all).

    One layer is traced and compiled, whatever their number. The stacked parameters go in as scan inputs: as closure
    constants they would be gathered whole.
    """
    graph, state = nnx.split(layers)
    if count is not None:
        state = jax.tree.map(lambda leaf: leaf[:count], state)

    def step(x, state):
        return apply(nnx.merge(graph, state), x), None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, x, state)[0]
