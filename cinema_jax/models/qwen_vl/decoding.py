"""Answers of Qwen2-VL and Qwen2.5-VL, token by token, with the keys and values of what was read kept.

A prompt is read at once (`prefill`), then each token costs one row of every layer (`step`). Prompts are padded at their
end, as everywhere; what is said goes behind the longest of them, at the same place for all, so that writing it is one
slice. Masks and M-RoPE positions know where each prompt ended.

`decode` compiles once for each shape of the inputs and room for new tokens: how an answer is chosen, where it stops and
how long it may be are arrays.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from cinema_jax.devices import distributed
from cinema_jax.devices.sharding import gathered_layer
from cinema_jax.models.activations import named
from cinema_jax.models.layers import platform
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.models.qwen_vl.config import MLLMInputs
from cinema_jax.models.qwen_vl.model import Keys, Qwen2VL, attend_causally, mrope

_MASKED = -1e30


class Cache(NamedTuple):
    """Keys and values of all layers; they are turned by their positions already."""

    keys: Float[Array, "layer B N S D"]
    values: Float[Array, "layer B N S D"]


class Answers(NamedTuple):
    """What was said to each prompt."""

    tokens: Int[np.ndarray, "B new"]  # what comes behind `lengths` means nothing
    lengths: Int[np.ndarray, "B"]  # tokens before the one that ended it
    finished: Bool[np.ndarray, "B"]  # whether one of `stop` came; else there was no more room


# The stacked layers, or, where that is faster, a list of them: graph and states.
Layers = tuple[nnx.GraphDef, Any]


def layers_of(model: Qwen2VL) -> Layers:
    """The model's layers as decoding runs them.

    A CPU gets each layer's weights for themselves: a scan copies them out of the stack for every token, which takes
    as long as the token itself.
    """
    graph, state = nnx.split(model.layers)
    if platform() != "cpu":
        return graph, state
    leaves, structure = jax.tree.flatten(state)
    return graph, [structure.unflatten(layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]


def _through(layers: Layers, x: Any, apply: Callable[[Any, Any], Any], whole: bool) -> Any:
    """`x = apply(layer, x)` for one layer after the other.

    Args:
        whole: gather each layer's weights before use. For a single token it is cheaper to leave them where they lie,
            and to add up what the devices make of their shares.
    """
    graph, states = layers
    if isinstance(states, list):
        for state in states:
            x = apply(nnx.merge(graph, gathered_layer(state, len(states)) if whole else state), x)
        return x
    count = len(jax.tree.leaves(states)[0])

    def one(x, state):
        return apply(nnx.merge(graph, gathered_layer(state, count) if whole else state), x), None

    return jax.lax.scan(one, x, states)[0]


def prefill(model: Qwen2VL, layers: Layers, inputs: MLLMInputs, room: int) -> tuple[Float[Array, "B V"], Cache]:
    """Read the prompts: the logits of the token that follows each, and a cache with room for so many more."""
    config, (batch, length) = model.config, inputs.tokens.shape
    x = model.embed(inputs)
    rotary = mrope(inputs.positions, config)
    attend = partial(attend_causally, lengths=inputs.lengths)
    shape = config.num_hidden_layers, batch, config.num_key_value_heads, length + room, config.head_dim
    cache = Cache(*(named(jnp.zeros(shape, x.dtype), "cache") for _ in range(2)))

    def apply(block, carry):
        x, cache, index = carry
        x, kept = block(x, rotary, attend)
        return x, _written(cache, index, 0, *kept), index + 1

    x, cache, _ = _through(layers, (x, cache, jnp.int32(0)), apply, whole=True)
    last = x[jnp.arange(batch), inputs.lengths - 1]
    return model.unembed(model.norm(last)), cache


def step(
    model: Qwen2VL,
    layers: Layers,
    tokens: Int[Array, "B"],
    positions: Int[Array, "B"],
    cache: Cache,
    place: Int[Array, ""],
    seen: Bool[Array, "B S"],
) -> tuple[Float[Array, "B V"], Cache]:
    """One more token of each answer: the logits of the one that follows.

    Args:
        positions: of the tokens, the same for time, row and column.
        place: of the cache, where their keys and values go.
        seen: what of the cache each may attend to, itself included.
    """
    x = named(model.embed_tokens(tokens)[:, None], "looked_up")
    rotary = mrope(jnp.repeat(positions[:, None, None], 3, axis=1), model.config)

    def apply(block, carry):
        x, cache, index = carry

        def attend(q, k, v):
            kept = _written(cache, index, place, k, v)
            return _attend(q, kept.keys[index], kept.values[index], seen), kept

        return *block(x, rotary, attend), index + 1

    x, cache, _ = _through(layers, (x, cache, jnp.int32(0)), apply, whole=False)
    return model.unembed(model.norm(x[:, 0])), cache


def _written(cache: Cache, index: Int[Array, ""], place: Any, k: Keys, v: Keys) -> Cache:
    """The cache with keys and values of one layer from `place` on."""

    def write(old, x):
        x = x.transpose(0, 2, 1, 3)[None].astype(old.dtype)
        return jax.lax.dynamic_update_slice(old, x, (index, 0, 0, place, 0))

    return Cache(write(cache.keys, k), write(cache.values, v))


def _attend(
    q: Float[Array, "B 1 N D"],
    keys: Float[Array, "B N2 S D"],
    values: Float[Array, "B N2 S D"],
    seen: Bool[Array, "B S"],
) -> Float[Array, "B 1 N D"]:
    """One query of each sample; keys and values serve their groups of heads as they are, without copies."""
    batch, _, heads, size = q.shape
    groups = q.reshape(batch, keys.shape[1], -1, size) * size**-0.5
    logits = jnp.einsum("bngd,bnsd->bngs", groups, keys, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], logits, _MASKED), axis=-1)
    return jnp.einsum("bngs,bnsd->bngd", weights.astype(values.dtype), values).reshape(batch, 1, heads, size)


def nucleus(logits: Float[Array, "*B V"], top_p: Float[Array, ""]) -> Float[Array, "*B V"]:
    """Logits of the fewest tokens whose probabilities add up to `top_p`; those of all others are minus infinity."""
    descending = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first one stays, whatever `top_p` is.
    kept = (before < top_p).at[..., 0].set(True)
    least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def choose(
    logits: Float[Array, "B V"], keys: Key[Array, "B"], temperature: Float[Array, ""], top_p: Float[Array, ""]
) -> Int[Array, "B"]:
    """The most likely token at temperature 0; else one drawn from the nucleus, each row by its own key."""
    logits = at_least_fp32(logits)

    def draw():
        return jax.vmap(jax.random.categorical)(keys, nucleus(logits / temperature, top_p))

    return jax.lax.cond(temperature > 0, draw, lambda: jnp.argmax(logits, axis=-1)).astype(jnp.int32)


@partial(jax.jit, static_argnames=("graph", "room"))
def _decode(graph, state, inputs: MLLMInputs, stop, limit, temperature, top_p, seeds, room: int):
    model = nnx.merge(graph, state)
    layers, (batch, length) = layers_of(model), inputs.tokens.shape
    place = jnp.arange(length + room)
    read = place < inputs.lengths[:, None]
    # Positions go on after the largest one of the prompt, as the reference does.
    valid = read[:, None, :length]
    begin = jnp.max(jnp.where(valid, inputs.positions, -1), axis=(1, 2)) + 1
    keys = jax.vmap(jax.random.key)(seeds)

    def chosen(logits, count):
        return choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, count), temperature, top_p)

    def taken(answers, done, token, count):
        ends = (token[:, None] == stop).any(axis=1)
        said = answers.lengths + ~(done | ends)
        return Answers(answers.tokens.at[:, count].set(token), said, done | ends)

    def body(carry):
        count, token, cache, answers = carry
        at = length + count - 1
        seen = read | ((place >= length) & (place <= at))
        logits, cache = step(model, layers, token, begin + count - 1, cache, at, seen)
        token = chosen(logits, count)
        return count + 1, token, cache, taken(answers, answers.finished, token, count)

    logits, cache = prefill(model, layers, inputs, room)
    token = chosen(logits, 0)
    answers = Answers(jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool))
    carry = jnp.int32(1), token, cache, taken(answers, answers.finished, token, 0)
    return jax.lax.while_loop(lambda carry: (carry[0] < limit) & ~carry[3].finished.all(), body, carry)[3]


def decode(
    model: Qwen2VL,
    inputs: MLLMInputs,
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    room: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: UInt32[Array | np.ndarray, "B"] | None = None,
) -> Answers:
    """An answer to each prompt.

    Args:
        stop: tokens that end an answer.
        max_new_tokens: of an answer, at least 1, the one that ends it included.
        room: for new tokens; compiled anew for each. None: `max_new_tokens`.
        temperature: logits are divided by it before a token is drawn; 0: the most likely token is taken.
        top_p: drawn is among the fewest tokens whose probabilities add up to this.
        seeds: of each row; what is drawn for it depends on nothing else. None: 0.
    """
    graph, state = nnx.split(model)
    inputs = jax.tree.map(jnp.asarray, inputs)
    seeds = np.zeros(len(inputs.tokens), np.uint32) if seeds is None else seeds
    numbers = np.asarray(stop, np.int32), np.int32(max_new_tokens), np.float32(temperature), np.float32(top_p)
    found = _decode(graph, state, inputs, *numbers, seeds, room or max_new_tokens)
    return jax.tree.map(distributed.fetch, found)
