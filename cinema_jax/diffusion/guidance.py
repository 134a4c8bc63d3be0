"""Classifier-free guidance over text and references.

The chain is that of InstructPix2Pix (arXiv 2211.09800, equation 3) with the references in the place of its image:

    v =       v(none, none)
      + s_ref  * (v(refs, none) - v(none, none))
      + s_text * (v(refs, text) - v(refs, none))
      = (1 - s_ref) v(none, none) + (s_ref - s_text) v(refs, none) + s_text v(refs, text)

`none` for text is the empty prompt, read by the conditioner like any other; `none` for references is no images and no
entity tokens. A **negative prompt** replaces the empty prompt in both branches without text, so that guidance pushes
away from what it says; with `s_text == s_ref == 1` neither branch exists and it has no influence.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from cinema_jax.models.numerics import at_least_fp32


class Branch(NamedTuple):
    """One set of conditions: with or without the references, with the prompt or the empty (or negative) one."""

    references: bool
    text: bool


UNCONDITIONAL = Branch(references=False, text=False)
REFERENCES_ONLY = Branch(references=True, text=False)
FULL = Branch(references=True, text=True)


def guidance_coefficients(guidance_text: float | int, guidance_reference: float | int) -> dict[Branch, float]:
    """The factor of every branch that takes part; they sum to 1, and a branch whose factor is 0 is left out.

    Equal scales leave out the middle branch: plain guidance that drops text and references together. Two ones leave
    only the full branch: no guidance, one network evaluation per sample.

    Raises:
        ValueError: for a scale that is not finite.
    """
    for name, value in (("guidance_text", guidance_text), ("guidance_reference", guidance_reference)):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a finite number (1 means no guidance)")
    text, reference = float(guidance_text), float(guidance_reference)
    chain = {UNCONDITIONAL: 1 - reference, REFERENCES_ONLY: reference - text, FULL: text}
    return {branch: factor for branch, factor in chain.items() if factor != 0}


def branch_factors(
    branches: Iterable[Branch], guidance_text: float | int, guidance_reference: float | int
) -> list[float]:
    """The same as a number for each of `branches`, 0 where one takes no part: they sum to 1.

    Raises:
        ValueError: another branch takes part too.
    """
    coefficients, branches = guidance_coefficients(guidance_text, guidance_reference), tuple(branches)
    if missing := [branch for branch in coefficients if branch not in branches]:
        raise ValueError(f"branches are {branches}; the scales {guidance_text} and {guidance_reference} need {missing}")
    return [coefficients.get(branch, 0.0) for branch in branches]


def guided(
    velocity: Callable[[Array, Array, Any], Array],
    conditions: Mapping[Branch, PyTree[Array]],
    coefficients: Mapping[Branch, float | Float[Array, ""]],
    *,
    in_turn: bool = False,
) -> Callable[[Array, Array], Array]:
    """The guided velocity field of `z` and `time`, at one call of the network.

    A sample's branches become neighbouring rows of one batch: a batch that is split over devices stays where it is. Or
    they run `in_turn`, in the memory of one.

    Args:
        velocity: `velocity(z, time, conditions)`, every array with a leading batch axis.
        conditions: per branch a tree of arrays with a leading batch axis; all trees alike in structure and shapes (no
            references are padding with length 0). Branches without a coefficient are ignored.
        coefficients: from `guidance_coefficients`; the values may be traced, the set of branches is static.

    Returns:
        `field(z: B ..., time: B) -> B ...`, summed in fp32.

    Raises:
        ValueError: where a branch has a coefficient but no conditions, or its tree differs from the others'.
    """
    branches = tuple(coefficients)
    if not branches:
        raise ValueError("coefficients is empty; it must name at least one branch")
    if missing := [branch for branch in branches if branch not in conditions]:
        raise ValueError(f"conditions lacks {missing}; coefficients asks for {list(branches)}")
    shapes = {branch: jax.tree.map(jnp.shape, conditions[branch]) for branch in branches}
    for branch in branches[1:]:
        if shapes[branch] != shapes[branches[0]]:
            raise ValueError(
                f"conditions of {branch} are {shapes[branch]}, of {branches[0]} {shapes[branches[0]]}; pad them alike"
            )
    count = len(branches)

    def interleave(*leaves):
        batch, *rest = leaves[0].shape
        return jnp.stack(leaves, axis=1).reshape(batch * count, *rest)

    stacked = jax.tree.map(interleave, *(conditions[branch] for branch in branches))

    def field(z, time):
        if in_turn:
            each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(conditions[branch] for branch in branches))
            v = jax.lax.map(lambda told: at_least_fp32(velocity(z, time, told)), each)
            return sum(coefficients[branch] * v[i] for i, branch in enumerate(branches))
        v = at_least_fp32(velocity(jnp.repeat(z, count, axis=0), jnp.repeat(time, count, axis=0), stacked))
        v = v.reshape(len(z), count, *v.shape[1:])
        # A plain sum and not a matrix product, which TPUs would round to bf16.
        return sum(coefficients[branch] * v[:, i] for i, branch in enumerate(branches))

    return field
