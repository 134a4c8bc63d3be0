import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from tiny import process_environment

from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.devices import sharding
from cinema_jax.devices.axes import AXES, STATE, WEIGHTS
from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.aligner.model import AlignerNet
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.transformer import CogVideoXTransformer
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig, Qwen25VLVisionConfig
from cinema_jax.models.qwen_vl.model import Qwen2VL
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.t5.model import T5Encoder
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.vae import WanVAE
from cinema_jax.training import state
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.weights.rules import flatten


def abstract_mesh(data=1, fsdp=1, context=1, tensor=1, slice=1):
    return AbstractMesh((slice, data, fsdp, context, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def spec_of(path, shape, mesh, split=STATE):
    return next(sharding.placements({path: leaf(*shape)}, mesh, split)).spec


def on_eight_devices(code):
    """Run `code` in a process with eight CPU devices; its output."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=process_environment(devices=8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("dit/blocks/to_q/kernel", (30, 64, 64), (None, "fsdp", "tensor")),
        ("dit/blocks/to_out/kernel", (30, 64, 64), (None, "tensor", "fsdp")),
        ("mllm/layers/mlp/gate_proj/kernel", (2, 64, 128), (None, "fsdp", "tensor")),
        ("mllm/layers/mlp/down_proj/kernel", (2, 128, 64), (None, "tensor", "fsdp")),
        ("mllm/embed_tokens/embedding", (512, 64), ("tensor", "fsdp")),
        ("vae/encoder/conv_in/kernel", (3, 3, 3, 4, 64), (None, None, None, None, "fsdp")),
        ("t5/token_embedding", (512, 64), ("tensor", "fsdp")),
        ("t5/relative_attention_bias", (32, 64), ()),
        ("mllm/layers/self_attn/q_proj/bias", (2, 64), ()),
        ("dit/blocks/to_q/bias", (30, 64), ()),
        ("dit/blocks/up/bias", (42, 12288), (None, "fsdp")),
        ("aligner/latents", (226, 768), ()),
        ("step", (), ()),
    ],
)
def test_rule_table(path, shape, spec):
    mesh = abstract_mesh(data=2, fsdp=4, tensor=2)
    assert spec_of(path, shape, mesh, WEIGHTS) == PartitionSpec(*spec)


def test_the_state_between_steps_is_split_over_data_too():
    mesh = abstract_mesh(data=2, fsdp=4, tensor=2)
    assert spec_of("dit/blocks/to_q/kernel", (30, 64, 64), mesh) == PartitionSpec(None, ("fsdp", "data"), "tensor")


def test_axis_that_does_not_divide_stays_whole_and_the_table_says_so():
    tree = {"dit/to_q/kernel": leaf(6, 8)}
    placement = next(sharding.placements(tree, abstract_mesh(fsdp=4, tensor=2)))
    assert placement.spec == PartitionSpec(None, "tensor")
    assert "fsdp 4 does not divide 6: kept whole" in sharding.describe(tree, abstract_mesh(fsdp=4, tensor=2))


def test_state_is_split_over_context_too_as_far_as_it_divides():
    mesh = abstract_mesh(fsdp=4, context=2)
    assert spec_of("dit/to_q/kernel", (16, 8), mesh) == PartitionSpec(("fsdp", "context"), None)
    assert spec_of("dit/to_q/kernel", (12, 8), mesh) == PartitionSpec("fsdp", None)
    assert "kept in fewer parts" in sharding.describe({"dit/to_q/kernel": leaf(12, 8)}, mesh)


@pytest.mark.parametrize(
    ("count", "asked", "expected"),
    [
        (64, {}, (1, 4, 16, 1, 1)),
        (512, {}, (1, 32, 16, 1, 1)),
        (4, {}, (1, 1, 4, 1, 1)),
        (12, {}, (1, 3, 4, 1, 1)),
        (128, {"slice": 2, "context": 4}, (2, 1, 16, 4, 1)),
    ],
)
def test_fsdp_is_chosen_from_the_number_of_devices(count, asked, expected):
    assert tuple(sharding.mesh_shape(count, fsdp=0, **asked).values()) == expected


def test_parameters_average_and_moments_lie_alike():
    params = {"dit/to_q/kernel": leaf(8, 8), "dit/to_out/kernel": leaf(8, 8), "dit/to_q/bias": leaf(8)}
    optimizer = make_optimizer(OptimizerConfig(), steps=10)
    mesh = abstract_mesh(data=2, fsdp=4)
    specs = {}
    for placement in sharding.placements(state.abstract(params, optimizer, sharding.make_mesh()), mesh):
        for path in params:
            if placement.path.endswith(path):
                specs.setdefault(path, []).append(placement.spec)
    assert {path: len(found) for path, found in specs.items()} == dict.fromkeys(params, 4)
    assert all(len(set(found)) == 1 for found in specs.values())


def test_factored_moment_with_fewer_axes_than_its_rule_is_replicated():
    assert spec_of("opt_state/v_row/dit/to_q/kernel", (8,), abstract_mesh(fsdp=4)) == PartitionSpec()


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (AlignerNet, AlignerConfig(input_dim=1536, output_dim=4096)),
        (CogVideoXTransformer, CogVideoXConfig()),
        (T5Encoder, T5Config()),
        (Qwen2VL, Qwen2VLConfig()),
        (Qwen2VL, Qwen2VLConfig(vision=Qwen25VLVisionConfig(out_hidden_size=1536))),
        (WanVAE, WanVAEConfig()),
    ],
)
def test_every_large_parameter_is_split(model, config):
    params = jax.eval_shape(lambda: flatten(model(config, rngs=nnx.Rngs(0))))
    large = [x for x in sharding.placements(params, abstract_mesh(fsdp=8)) if math.prod(x.shape) > 1e6]
    assert [x.path for x in large if x.bytes_per_device != math.prod(x.shape) * 4 // 8] == []


def test_description_is_the_golden_table():
    tree = {"step": jax.ShapeDtypeStruct((), jnp.int32), "to_out/kernel": leaf(2, 8, 16), "to_q/kernel": leaf(2, 6, 8)}
    expected = """\
mesh slice 1 x data 1 x fsdp 4 x context 1 x tensor 2
path           array            partition          bytes/device
step           int32[]          replicated                    4
to_out/kernel  float32[2,8,16]  (-, tensor, fsdp)           128
to_q/kernel    float32[2,6,8]   (-, -, tensor)              192  fsdp 4 does not divide 6: kept whole
total 324 bytes a device"""
    assert sharding.describe(tree, abstract_mesh(fsdp=4, tensor=2)) == expected


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 1, "tensor": 0}, {"fsdp": 5}])
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ValueError, match="mesh slice 1 x data"):
        sharding.make_mesh(**sizes)


def test_mesh_fills_and_batches_split_over_data_and_fsdp():
    out = on_eight_devices("""
import jax, numpy as np
from cinema_jax.devices import sharding
mesh = sharding.make_mesh(fsdp=2, context=2)
print(dict(mesh.shape), {t.name for t in mesh.axis_types})
x = jax.device_put(np.zeros((8, 3)), sharding.batch_sharding(mesh))
print(x.addressable_shards[0].data.shape)
placed = sharding.place({"to_q/kernel": np.arange(32.0).reshape(4, 8)}, mesh)["to_q/kernel"]
print(placed.addressable_shards[0].data.shape, bool((np.asarray(placed) == np.arange(32.0).reshape(4, 8)).all()))
""")
    assert out.splitlines() == [
        "{'slice': 1, 'data': 2, 'fsdp': 2, 'context': 2, 'tensor': 1} {'Auto'}",
        "(2, 3)",
        "(1, 8) True",
    ]
