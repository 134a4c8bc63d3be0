"""Named activations: what a mesh splits, and what a backward pass may keep instead of computing it again.

Models say what an array is (`named(x, "tokens")`); how it lies on the mesh and whether it is kept is decided here.
"""

import math
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from cinema_jax.devices.axes import BATCH, CONTEXT, TENSOR

# Name: mesh axes of each array axis.
LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    # What a vocabulary's table holds of tokens, (B, S, D). The table is split by D: unless told otherwise, XLA would
    # split all that follows like it, and every device compute every sample.
    "looked_up": (BATCH, (), ()),
    # What one block hands to the next, (B, S, D).
    "carry": (BATCH, (CONTEXT,), ()),
    # Queries, keys, values and what attention makes of them, (B, S, N x D): a last axis of one head's size would be
    # padded to 128 numbers on TPUs.
    "q": (BATCH, (CONTEXT,), (TENSOR,)),
    "k": (BATCH, (CONTEXT,), (TENSOR,)),
    "v": (BATCH, (CONTEXT,), (TENSOR,)),
    "attended": (BATCH, (CONTEXT,), (TENSOR,)),
    # Keys and values of the few tokens that a video is told by, (B, T, N x D): whole for all that is split by tokens.
    "told": (BATCH, (), (TENSOR,)),
    # Those of all layers that decoding keeps, (layer, B, N, S, D).
    "cache": ((), BATCH, (TENSOR,), (), ()),
    # The wide layer of a feed-forward network, (B, S, D).
    "hidden": (BATCH, (CONTEXT,), (TENSOR,)),
    # What comes back to the residual stream, (B, S, D).
    "projection": (BATCH, (CONTEXT,), ()),
}

# The last one is named by attention itself: see `attention.splash`.
_SAVED = ("q", "k", "v", "attention_output")


def _keeping(*names: str) -> Callable:
    """What bears one of these names, and all that cuDNN's attention returns.

    Of its two results one bears no name, and without it the backward pass would run the kernel again.
    """
    return jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(*names),
        lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention_fwd"),
    )


# What the backward pass finds of each block; it computes the rest again.
REMAT: dict[str, Callable | None] = {
    # The block's input, ...
    "full": None,
    # ... in the host's memory, ...
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["carry"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    # ... with all that attention reads and writes, so that attention is not computed again, ...
    "attention": _keeping(*_SAVED),
    # ... or with the result of every product with a parameter.
    "dots": _keeping(*_SAVED, "hidden", "projection"),
}


def split(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those of the mesh's axes that an array axis of `size` is split over: all of them, or none if they do not divide.

    Without a mesh, none.
    """
    mesh = jax.sharding.get_abstract_mesh()
    there = tuple(axis for axis in axes if not mesh.empty and mesh.shape.get(axis, 1) > 1)
    return there if there and size % math.prod(mesh.shape[axis] for axis in there) == 0 else ()


def context_devices() -> int:
    """Over how many devices the tokens of one sequence are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get(CONTEXT, 1)


def named(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """`x`, laid out as its name says where a mesh is set, and known to the policies of `REMAT` by that name."""
    spec = PartitionSpec(*(split(axes, size) or None for axes, size in zip(LAYOUTS[name], x.shape, strict=True)))
    if any(spec):
        x = jax.lax.with_sharding_constraint(x, spec)
    return checkpoint_name(x, name)
