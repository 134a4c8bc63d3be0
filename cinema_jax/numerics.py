"""Types in which sums and differences are taken."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def at_least_fp32(x: ArrayLike) -> Float[Array, "..."]:
    """`x` in fp32, or as it is where that is wider."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
