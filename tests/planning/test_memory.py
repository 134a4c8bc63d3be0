"""What layers take of a chip's memory: of numbers, of codes, and those that lie with the host; on v5e and here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cinema_jax.devices import sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.models.layers import LayerNorm, Linear, scan_layers, stack_layers
from cinema_jax.models.quantised import quantise
from cinema_jax.planning import planner
from cinema_jax.weights import rules

LAYERS, TOKENS = 12, 256


class Block(nnx.Module):
    """A feed-forward layer."""

    def __init__(self, width, rngs):
        self.norm = LayerNorm(width, eps=1e-5)
        self.up, self.down = Linear(width, 4 * width, rngs=rngs), Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class Net(nnx.Module):
    """So many that they are scanned."""

    def __init__(self, width):
        self.blocks = stack_layers(lambda rngs: Block(width, rngs), LAYERS, nnx.Rngs(0))

    def __call__(self, x):
        return scan_layers(self.blocks, x, lambda block, x: block(x))


def moved(path, x, away):
    """Its sharding, of a kernel with the host."""
    return x.sharding.with_memory_kind(sharding.HOST if away and path.endswith("kernel") else "device")


@pytest.fixture(scope="module")
def compiled(tpus):
    """By weights and whether they lie with the host."""
    mesh, found, width = sharding.make_mesh(devices=planner.devices("v5e:2x2")[:1]), {}, 512
    for kind, away in ((None, False), ("int8", False), (None, True)):
        network = nnx.eval_shape(lambda kind=kind: quantise(Net(width), kind) if kind else Net(width))
        graph, state = nnx.split(network)
        narrow = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype if x.dtype == jnp.int8 else jnp.bfloat16)
            for path, x in rules.flatten(state).items()
        }
        params = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=moved(path, x, away))
            for path, x in sharding.abstract(narrow, mesh, WEIGHTS).items()
        }
        x = jax.ShapeDtypeStruct((1, TOKENS, width), jnp.bfloat16, sharding=sharding.replicated(mesh))
        with jax.set_mesh(mesh):
            run = jax.jit(lambda params, x, graph=graph: rules.build(graph, params)(x))
            found[kind, away] = run.lower(params, x).compile().memory_analysis()
    return found, 4 * width * width


def test_no_kernel_of_numbers_lies_beside_codes(compiled):
    sizes, kernel = compiled
    plain, codes = sizes[None, False], sizes["int8", False]
    assert plain.argument_size_in_bytes > LAYERS * 2 * 2 * kernel
    assert codes.argument_size_in_bytes < 0.55 * plain.argument_size_in_bytes
    assert codes.temp_size_in_bytes < 2 * kernel / 2


def test_two_layers_at_a_time_are_on_the_chip_of_those_that_lie_with_the_host(compiled):
    sizes, kernel = compiled
    layer = 2 * 2 * kernel
    here, away = sizes[None, False], sizes[None, True]
    assert away.host_argument_size_in_bytes == LAYERS * layer
    assert away.argument_size_in_bytes < here.argument_size_in_bytes - 0.9 * LAYERS * layer
    assert away.temp_size_in_bytes < here.temp_size_in_bytes + 2.5 * layer


def test_layers_that_lie_with_the_host_compute_the_same_to_the_bit():
    mesh, outputs = sharding.make_mesh(devices=jax.devices()[:1]), []
    graph, state = nnx.split(Net(32))
    x = jax.random.normal(jax.random.key(0), (1, 8, 32))
    for away in (False, True):
        placed = sharding.place(rules.flatten(state), mesh, WEIGHTS)
        placed = {path: jax.device_put(y, moved(path, y, away)) for path, y in placed.items()}
        assert any(map(sharding.is_away, placed.values())) == away
        outputs.append(np.asarray(jax.jit(lambda params: rules.build(graph, params)(x))(placed)))
    np.testing.assert_array_equal(*outputs)
    assert np.ptp(outputs[0]) > 1
