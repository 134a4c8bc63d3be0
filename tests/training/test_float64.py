"""In float64 a step is the same on every mesh: what differs by more than rounding is a mistake, not arithmetic."""

import json
import math
import re

import numpy as np
import pytest
from float64 import BATCH, MESHES, STEPS

# Tokens of text, video and references; width of the transformer and of its hidden layers.
TOKENS, WIDTH, HIDDEN = 15 + 8 + 12, 64, 256

on_every_mesh = pytest.mark.parametrize(
    "number", range(1, len(MESHES)), ids=[" x ".join(f"{a} {n}" for a, n in sizes.items()) for sizes in MESHES[1:]]
)


@on_every_mesh
def test_losses_parameters_and_averages_are_those_of_one_device(meshes, number):
    one, many = np.load(meshes / "0.npz"), np.load(meshes / f"{number}.npz")
    assert one["told"].shape == (STEPS, 2)
    assert len(one.files) > 2 * 50
    for name in one.files:
        assert many[name].dtype == np.float64
        np.testing.assert_allclose(many[name], one[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_steps_change_every_parameter(meshes):
    one = np.load(meshes / "0.npz")
    params = [name.removeprefix("params/") for name in one.files if name.startswith("params/")]
    # The average follows slowly: where it is what the parameter is, that has never moved. Softmax does not see a bias
    # of all keys.
    still = [path for path in params if np.abs(one[f"params/{path}"] - one[f"ema/{path}"]).max() < 1e-6]
    assert still == ["aligner/layers/k/bias"]


@on_every_mesh
def test_parameters_tokens_and_features_are_really_split(meshes, number):
    sizes = {axis: 1 for axis in ("slice", "data", "fsdp", "context", "tensor", "microbatches")} | MESHES[number]
    state = sizes["data"] * sizes["fsdp"] * sizes["context"]
    shares = json.loads((meshes / f"{number}.json").read_text())
    split = {
        path: math.prod(whole) // math.prod(share)
        for path, (whole, share) in shares.items()
        if path.startswith("dit/blocks/")
    }
    assert split == {path: state * sizes["tensor"] if path.endswith("kernel") else state for path in split}

    program = (meshes / f"{number}.txt").read_text()
    rows = max(1, BATCH // sizes["microbatches"] // (sizes["slice"] * sizes["data"] * sizes["fsdp"]))
    tokens = math.ceil(TOKENS / sizes["context"])
    assert f"f64[{rows},{tokens},{WIDTH}]" in program
    assert f"f64[{rows},{tokens},{HIDDEN // sizes['tensor']}]" in program or sizes["context"] == 1
    assert not re.search(rf"f64\[{BATCH},\d+,{WIDTH}\]", program)
    # Over `context` the heads are exchanged for tokens.
    assert (program.count(" all-to-all(") >= 10) == (sizes["context"] > 1)


def test_nothing_is_computed_in_fp32(meshes):
    program = (meshes / "lowered.txt").read_text()
    lines = [line.strip() for line in program.splitlines() if re.search(r"= .*stablehlo\.", line)]
    results = {line: re.findall(r"tensor<[^>]*>", line)[-1] for line in lines if "tensor<" in line}
    narrow = [line for line, kind in results.items() if re.search(r"[<x](f32|bf16|f16)>", kind)]
    assert sum("f64>" in kind for kind in results.values()) > 1000
    # Tables that the reference rounds to fp32.
    assert [line for line in narrow if "stablehlo.constant" not in line] == []
