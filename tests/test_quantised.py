"""Kernels as codes: how far products move, which kernels they are, and that files hold the same codes again."""

import filecmp
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_run, tiny_config

import cinema_jax
from cinema_jax import convert
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.exchange.inspection import inspect
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.layers import Linear
from cinema_jax.models.quantised import QuantisedLinear, large_kernels
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.weights.quantised import KINDS, SCALE, Codes, Scales, check_kind

every_kind = pytest.mark.parametrize("kind", KINDS)
ROOT = Path(__file__).parents[1]
LAYERS, INPUTS, OUTPUTS = 3, 48, 40


@pytest.fixture(scope="module")
def kernel():
    """Of stacked layers, with a channel of zeros and one whose numbers are a thousand times larger."""
    kernel = np.random.default_rng(0).standard_normal((LAYERS, INPUTS, OUTPUTS)).astype(np.float32)
    kernel[1, :, 3], kernel[2, :, 5] = 0, 1000 * kernel[2, :, 5]
    return kernel


def bound(kernel, kind):
    """How far a code may be from its number: half a step, which for float8 grows with the number."""
    largest = np.abs(kernel).max(axis=-2, keepdims=True)
    if kind == "int8":
        return np.broadcast_to(largest / 127 / 2, kernel.shape)
    # Three bits behind the leading one; the smallest numbers have steps of 2^-9.
    return np.maximum(np.abs(kernel) / 16, largest / 448 / 1024)


@every_kind
def test_a_product_moves_by_no_more_than_half_a_step_of_each_number(kernel, kind):
    """Of each layer, against the exact product: sum |x| times the most that each number of the kernel can move."""
    scales = Scales(kernel, kind)
    codes = np.asarray(Codes(kernel, scales, kind))
    x, bias = (
        np.random.default_rng(1).standard_normal(shape).astype(np.float32) for shape in ((5, INPUTS), (OUTPUTS,))
    )
    layer = QuantisedLinear(Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0)), kind)
    for number in range(LAYERS):
        layer.kernel[...], layer.kernel_scale[...] = jnp.asarray(codes[number]), jnp.asarray(scales[number])
        layer.bias[...] = jnp.asarray(bias)
        exact = x.astype(np.float64) @ kernel[number].astype(np.float64) + bias
        rounding = 1e-5 * (np.abs(x) @ np.abs(kernel[number]) + np.abs(bias))
        moved = np.abs(np.asarray(layer(jnp.asarray(x)), np.float64) - exact)
        assert (moved <= np.abs(x) @ bound(kernel[number], kind) + rounding).all()
        assert moved.max() > 10 * rounding.min()


@every_kind
def test_codes_are_made_of_any_part_of_a_kernel(kernel, kind):
    """As a device reads its slice, which has neither all layers nor all inputs."""
    scales = Scales(kernel, kind)
    codes, whole = Codes(kernel, scales, kind), np.asarray(Codes(kernel, scales, kind))
    for index in (np.s_[1:, 8:20, 4:], np.s_[2], np.s_[0, :, 3:9], np.s_[:]):
        np.testing.assert_array_equal(codes[index].view(np.uint8), whole[index].view(np.uint8))
    np.testing.assert_array_equal(scales[1:, 4:], np.asarray(scales)[1:, 4:])
    assert np.abs(whole.astype(np.float32)).max(axis=(0, 1)).min() == {"int8": 127, "fp8": 448}[kind]


@pytest.mark.parametrize("name", parts.QUANTISED)
def test_what_is_sensitive_stays_as_it_is(name, tmp_path):
    run = Run.open(tiny_config(), tmp_path)
    config = run.part_config(name)
    shapes, codes = parts.structure(name, config)[1], parts.structure(name, config, "int8")[1]
    large = large_kernels(shapes)
    assert codes.keys() == shapes.keys() | {path + SCALE for path in large}
    assert {path for path, x in codes.items() if x.dtype == np.int8} == set(large)
    assert not [path for path in large if re.search(r"norm|embed|bias|proj_out|lm_head|merger|modulation", path)]
    kernels = {path for path in shapes if path.endswith("kernel")} - set(large)
    stacked = [path for path in kernels if re.search(sharding.STACKED, path)]
    # Modulations alone.
    assert all("norm" in path for path in stacked)
    assert large


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of random weights, and its exports as codes by their kinds."""
    folder = tmp_path_factory.mktemp("quantised")
    random_run(folder / "run")
    for kind in KINDS:
        export(folder / "run", folder / kind, f"--weights={kind}", "--dtype=bfloat16")
    return folder


def export(checkpoint, output, *flags):
    options = convert._parser(["convert", "export", f"--checkpoint={checkpoint}", f"--output={output}", *flags])
    convert.main(options)


@every_kind
def test_an_export_holds_the_codes_that_loading_makes(folders, kind):
    """Bit for bit."""
    for name in parts.QUANTISED:
        made, stored = (
            parts.with_codes(name, Run.load(folders / folder).params(name), kind) for folder in ("run", kind)
        )
        assert made.keys() == stored.keys()
        paths = [path for path in made if path.endswith(SCALE)]
        assert len(paths) > 5
        for path in [*paths, *(path.removesuffix(SCALE) for path in paths)]:
            assert stored[path].dtype == made[path].dtype
            assert np.asarray(stored[path]).tobytes() == np.asarray(made[path]).tobytes()


def test_a_checkpoint_of_codes_is_sampled_as_what_it_holds(folders):
    _, sampler = load_sampler(folders / "int8")
    assert sampler.cinema.quantised == {"mllm": "int8", "dit": "int8"}
    assert sampler.params["dit/blocks/up/kernel"].dtype == np.int8


def test_an_export_exported_again_is_the_same(folders, tmp_path):
    export(folders / "int8", tmp_path / "again", "--weights=int8", "--dtype=bfloat16")
    files = [file for name in ("transformer", "text_encoder", "mllm") for file in (folders / "int8" / name).iterdir()]
    assert len(files) > 6
    for file in files:
        assert filecmp.cmp(file, tmp_path / "again" / file.parent.name / file.name, shallow=False)


def test_whoever_wants_numbers_gets_codes_times_scales(folders, tmp_path):
    """Training, imports, exports without codes: within half a step of what was exported."""
    run = Run.load(folders / "int8")
    name, params = "dit", run.params("dit")
    before = Run.load(folders / "run").params(name)
    assert params.keys() == before.keys()
    large = large_kernels(params)
    for path in large:
        kernel, found = np.asarray(before[path]), np.asarray(params[path])
        assert (np.abs(found - kernel) <= bound(kernel, "int8") * (1 + 1e-5)).all()
        np.testing.assert_array_equal(params[path][:, 2:7, 3:], found[:, 2:7, 3:])
    export(folders / "int8", tmp_path / "plain", "--part=dit")
    plain = Run.load(tmp_path / "plain")
    np.testing.assert_array_equal(np.asarray(plain.params(name)[large[0]]), np.asarray(params[large[0]]))
    assert "quantization_config" not in parts.read_json(plain.folder(name) / "config.json")
    assert any("cinema_jax.Pipeline" in line for line in (folders / "int8/README.md").read_text().splitlines())
    assert not [line for line in inspect([folders / "int8"]) if "cannot be used" in line]


def test_diffusers_says_that_it_cannot_read_codes(folders):
    """In place of taking them for weights."""
    diffusers = pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match="cinema_jax"):
        diffusers.CogVideoXTransformer3DModel.from_pretrained(folders / "int8" / "transformer")


def test_layers_of_codes_are_not_offloaded_one_by_one(folders):
    """By one sentence, before any are read; also where they were stored so."""
    for checkpoint, weights in (("run", "int8"), ("int8", None)):
        with pytest.raises(
            InputError, match="layers cannot be offloaded one by one where their kernels are int8 codes"
        ):
            load_sampler(folders / checkpoint, weights=weights, offload="layers")


def test_other_kinds_are_refused_in_one_sentence(folders, tmp_path, capsys):
    with pytest.raises(InputError, match=r"^weights is 'int4'; accepted: int8, fp8$"):
        check_kind("int4")
    with pytest.raises(InputError, match=r"^--weights=int8: there is no original layout of such weights$"):
        export(folders / "run", tmp_path / "no", "--weights=int8", "--layout=original")
    with pytest.raises(SystemExit) as ended:
        export(folders / "run", tmp_path / "no", "--weights=int4")
    assert ended.value.code == 2
    assert "invalid choice: 'int4'" in capsys.readouterr().err


def test_the_demo_makes_nearly_the_same_videos_of_int8():
    """Frames of the packaged demo within 35 dB of those of its float weights."""
    found = []
    for weights in (None, "int8"):
        pipe = cinema_jax.Pipeline.from_pretrained(weights=weights)
        pictures = [ROOT / "examples/blue_bird.png"]
        found.append(
            [x.frames.astype(float) for x in pipe(["the blue bird jumps up"] * 2, [pictures] * 2, seed=[1, 2], steps=3)]
        )
    errors = [np.mean((one - other) ** 2) for one, other in zip(*found, strict=True)]
    assert min(errors) > 0
    assert 10 * np.log10(255**2 / max(errors)) >= 35
