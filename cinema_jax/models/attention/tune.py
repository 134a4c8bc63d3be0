"""Find the fastest blocks of splash attention on this TPU, and print their row of the table in `blocks.py`.

`--heads` are those of one device: all heads divided by the mesh's context x tensor.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from cinema_jax.commands import command, usage
from cinema_jax.errors import InputError
from cinema_jax.models.attention.blocks import DEFAULT, TABLE, Blocks, fit
from cinema_jax.models.attention.splash import splash

# Queries, keys, and keys at once.
CANDIDATES = [
    Blocks(queries, keys, at_once)
    for queries, keys, at_once in itertools.product((256, 512, 1024, 2048), (512, 1024, 2048, 4096), (256, 512, 1024))
    if at_once <= keys
]
_REPEATS = 5


def seconds(forward: Blocks, backward: Blocks | None, tokens: int, heads: int, head_size: int) -> float:
    """The median time of one call on one sample, forward, or forward and backward if `backward` is given.

    Infinite where the compiler refuses the blocks: they do not fit the chip's fast memory.
    """
    blocks = fit(forward, backward or forward, tokens, tokens)
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, tokens, heads, head_size), jnp.bfloat16) for key in keys)
    # As in training: with a mask.
    lengths = jnp.array([tokens - 1])

    def attend(q, k, v):
        return splash(q, k, v, lengths, None, causal=False, scale=head_size**-0.5, blocks=blocks)

    def loss(q, k, v):
        return attend(q, k, v).astype(jnp.float32).sum()

    call = jax.jit(attend if backward is None else jax.grad(loss, argnums=(0, 1, 2)))
    try:
        jax.block_until_ready(call(q, k, v))
    except jax.errors.JaxRuntimeError:
        return float("inf")
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call(q, k, v))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fastest(measure: Callable[[Blocks], float], candidates: Iterable[Blocks], name: str) -> Blocks:
    """The candidate of the least seconds; prints those of each.

    Raises:
        InputError: none of them ran.
    """
    times = {}
    for blocks in candidates:
        times[blocks] = measure(blocks)
        print(f"{name} {blocks}: {1e3 * times[blocks]:.2f} ms", flush=True)
    best = min(times, key=times.__getitem__)
    if times[best] == float("inf"):
        raise InputError(f"{name}: no blocks fit the memory of this {jax.devices()[0].device_kind}; take fewer heads")
    return best


def _parser(arguments: list[str]) -> argparse.Namespace:
    parser = usage.Parser(
        "python -m cinema_jax.models.attention.tune",
        examples=["--tokens=23552 --heads=12 --head-size=64"],
        description=__doc__,
    )
    parser.add_argument("--tokens", type=int, required=True, help="tokens of one sample")
    parser.add_argument("--heads", type=int, required=True, help="heads on one device")
    parser.add_argument("--head-size", type=int, required=True, choices=(64, 128))
    return parser.parse_args(arguments[1:])


def main(options: argparse.Namespace) -> None:
    """Search, forward first: the backward blocks are timed with the best forward ones."""
    device = jax.devices()[0]
    if device.platform != "tpu":
        raise InputError(f"tuning times kernels on a TPU, and JAX finds only a {device.device_kind!r} device here")
    sizes = (options.tokens, options.heads, options.head_size)
    forward = fastest(lambda blocks: seconds(blocks, None, *sizes), CANDIDATES, "forward")
    backward = fastest(lambda blocks: seconds(forward, blocks, *sizes), CANDIDATES, "forward and backward")
    before = seconds(*TABLE.get(device.device_kind, {}).get(options.head_size, DEFAULT), *sizes)
    print(f"forward and backward: {1e3 * before:.2f} ms before, {1e3 * seconds(forward, backward, *sizes):.2f} ms by")
    print(f'"{device.device_kind}": {{{options.head_size}: ({forward}, {backward})}},')


if __name__ == "__main__":
    command.run(main, _parser)
