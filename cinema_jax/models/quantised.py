"""Linear layers whose kernels are codes with scales, and which layers of a network they take the place of."""

import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cinema_jax.devices.sharding import STACKED
from cinema_jax.models.layers import Linear
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.weights.quantised import CODES, Kind

# Modulations: of few parameters, and each of their numbers moves a whole channel of all tokens.
_SENSITIVE = r"(^|/)norm\w*/linear/"


def large_kernels(paths: Iterable[str]) -> list[str]:
    """Of a network's parameters those kernels that may become codes: nearly all of its bytes.

    These are the kernels of stacked layers. Embeddings, the layers before and behind the stack, modulations, norms and
    biases stay as they are.
    """
    return [
        path
        for path in paths
        if path.endswith("/kernel") and re.search(STACKED, path) and not re.search(_SENSITIVE, path)
    ]


class QuantisedLinear(nnx.Module):
    """A linear layer that holds `kernel_scale * kernel`, where the kernel is codes.

    The scale is applied to the product: what is read from memory is codes, and no kernel of numbers is written there.
    Codes of float8 are multiplied in the type of `x` as well: products of two float8 would need `x` rounded, too.
    """

    def __init__(self, linear: Linear, kind: Kind):
        """As abstract as `linear` is: the codes are 0."""
        shape = linear.kernel.shape
        self.kernel = nnx.Param(jnp.zeros(shape, CODES[kind][0]))
        self.kernel_scale = nnx.Param(jnp.zeros((*shape[:-2], shape[-1])))
        self.use_bias = linear.use_bias
        if self.use_bias:
            self.bias = nnx.Param(linear.bias[...])

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D2"]:
        """`x` times the kernel over its last axis, plus the bias; summed, scaled and added to in fp32."""
        axes = ((x.ndim - 1,), (0,)), ((), ())
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = jax.lax.dot_general(x, self.kernel[...].astype(x.dtype), axes, preferred_element_type=wide)
        y = y * self.kernel_scale[...]
        return (y + at_least_fp32(self.bias[...]) if self.use_bias else y).astype(x.dtype)


def quantise(network: nnx.Module, kind: Kind) -> nnx.Module:
    """The network with `QuantisedLinear` in the place of the layers of `large_kernels`, in place."""
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(network)}
    linear = [path for path, module in modules.items() if isinstance(module, Linear)]
    for kernel in large_kernels(f"{path}/kernel" for path in linear):
        path = kernel.removesuffix("/kernel")
        parent, _, name = path.rpartition("/")
        setattr(modules[parent], name, QuantisedLinear(modules[path], kind))
    return network
