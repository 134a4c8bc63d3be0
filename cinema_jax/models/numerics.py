"""Types in which sums and differences are taken, and what is summed in them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


def at_least_fp32(x: ArrayLike) -> Float[Array, "..."]:
    """`x` in fp32, or as it is where that is wider."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def token_log_likelihood(logits: Float[Array, "B T V"], tokens: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B T"]:
    """The log-likelihood of each token under the logits at its place."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
