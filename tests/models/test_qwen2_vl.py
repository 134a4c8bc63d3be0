"""Qwen2-VL against transformers, with the same random weights, and what batching and padding must not change."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from cinema_jax.models.qwen_vl.config import (
    MLLMInputs,
    Qwen2VLConfig,
    Qwen2VLVisionConfig,
    config_from_hf,
    config_to_hf,
)
from cinema_jax.models.qwen_vl.model import Qwen2VL
from cinema_jax.models.qwen_vl.processing import mrope_positions, patch_grid
from cinema_jax.models.qwen_vl.weights import drop_head, table
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into
from cinema_jax.weights.shards import write_tensors
from cinema_jax.weights.tensors import WeightError

IMAGE = 7
VISION = Qwen2VLVisionConfig(depth=2, embed_dim=16, num_heads=2, patch_size=4)
BASE = Qwen2VLConfig(
    vision=VISION,
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    mrope_section=(1, 1, 2),
    tie_word_embeddings=True,
    image_token_id=IMAGE,
)
CONFIGS = {
    "grouped-tied": BASE,
    "one-kv-head-untied": dataclasses.replace(
        BASE,
        num_attention_heads=2,
        num_key_value_heads=1,
        mrope_section=(2, 3, 3),
        tie_word_embeddings=False,
        rms_norm_eps=1e-4,
    ),
    "plain-heads-other-patches": dataclasses.replace(
        BASE,
        num_key_value_heads=4,
        mrope_section=(2, 1, 1),
        tie_word_embeddings=False,
        rope_theta=500.0,
        vision=Qwen2VLVisionConfig(
            depth=1,
            embed_dim=24,
            num_heads=3,
            mlp_ratio=2,
            patch_size=3,
            temporal_patch_size=1,
            spatial_merge_size=3,
            image_mean=(0.5, 0.4, 0.3),
            image_std=(0.5, 0.5, 0.2),
        ),
    ),
}
# Grids (rows, columns) of merged blocks of the images of one prompt.
PROMPTS = {"text only": [], "1 image": [(2, 3)], "2 images": [(1, 1), (3, 2)], "3 images": [(2, 2), (1, 4), (3, 1)]}


def randomised(model_class: type, config_class: type, config: Qwen2VLConfig) -> transformers.PreTrainedModel:
    """A transformers model with random weights everywhere, norms and biases included."""
    torch.manual_seed(0)
    theirs = config_class.from_dict(config_to_hf(config))
    theirs._attn_implementation = "eager"
    model = model_class(theirs).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_norm = "norm" in key or "ln_q" in key
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * scale + (is_norm and key.endswith("weight")))
        # Small embeddings would leave the first layers all to the images.
        model.model.language_model.embed_tokens.weight.copy_(torch.randn(config.vocab_size, config.hidden_size))
    return model


@functools.cache
def reference(name: str) -> transformers.Qwen2VLForConditionalGeneration:
    return randomised(transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig, CONFIGS[name])


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def abstract(config: Qwen2VLConfig) -> Qwen2VL:
    """A model without memory."""
    return nnx.eval_shape(lambda: Qwen2VL(config, rngs=nnx.Rngs(0)))


def imported(config: Qwen2VLConfig, theirs: torch.nn.Module) -> Qwen2VL:
    """Our model with the weights of theirs."""
    model = abstract(config)
    load_into(model, import_weights(drop_head(tensors_of(theirs), config), table(config), flatten(model)))
    return model


@functools.cache
def ours(name: str) -> Qwen2VL:
    return imported(CONFIGS[name], reference(name))


def example(config: Qwen2VLConfig, grids, seed: int = 0, text: int = 4) -> dict[str, np.ndarray]:
    """Random words with images in between, and their random patches; without padding."""
    rng = np.random.default_rng(seed)
    merge = config.vision.spatial_merge_size

    def words(count):
        return rng.integers(8, config.vocab_size, count)

    tokens = [words(text)]
    for rows, columns in grids:
        tokens += [np.full(rows * columns, IMAGE), words(2)]
    tokens = np.concatenate(tokens).astype(np.int32)
    count = sum(rows * columns for rows, columns in grids) * merge**2
    segments = [np.full(rows * columns * merge**2, i + 1, np.int32) for i, (rows, columns) in enumerate(grids)]
    places = [patch_grid(rows * merge, columns * merge, merge) for rows, columns in grids]
    return {
        "tokens": tokens,
        "lengths": np.int32(len(tokens)),
        "positions": mrope_positions(tokens == IMAGE, grids),
        "patches": rng.normal(size=(count, config.vision.patch_dim)).astype(np.float32),
        "patch_segments": np.concatenate([np.zeros(0, np.int32), *segments]),
        "patch_positions": np.concatenate([np.zeros((0, 2), np.int32), *places]),
    }


def batch(examples, length: int, patches: int) -> MLLMInputs:
    """Examples padded to fixed sizes; what stands in the padding is not zero, because nobody may look at it."""
    fill = {"tokens": 9, "positions": 5, "patches": 3.0, "patch_segments": 0, "patch_positions": 2}
    sizes = {"tokens": length, "positions": length}
    columns = {}
    for field in MLLMInputs._fields:
        axis = -1 if field == "positions" else 0
        arrays = []
        for array in (np.asarray(x[field]) for x in examples):
            widths = [(0, 0)] * array.ndim
            if array.ndim:
                widths[axis] = (0, sizes.get(field, patches) - array.shape[axis])
            arrays.append(np.pad(array, widths, constant_values=fill[field]) if array.ndim else array)
        columns[field] = np.stack(arrays)
    return MLLMInputs.from_batch(columns)


@functools.partial(jax.jit, static_argnames=("graph", "layers"))
def _states(graph, state, inputs, layers):
    model = nnx.merge(graph, state)
    return [model.hidden_states(inputs, layer) for layer in layers], model.logits(inputs)


def run(model: Qwen2VL, inputs: MLLMInputs, layers=(0, 1, 2, 3)):
    """Hidden states of several layers, and the logits."""
    return _states(*nnx.split(model), inputs, layers)


@functools.cache
def samples(name: str) -> list[dict[str, np.ndarray]]:
    return [example(CONFIGS[name], grids, seed, 3 + seed) for seed, grids in enumerate(PROMPTS.values())]


@functools.cache
def together(name: str):
    """All prompts in one padded batch."""
    patches = 13 * CONFIGS[name].vision.merge_unit
    return run(ours(name), batch(samples(name), 26, patches))


def reference_inputs(config: Qwen2VLConfig, sample, grids) -> dict[str, torch.Tensor]:
    merge = config.vision.spatial_merge_size
    tokens = torch.from_numpy(sample["tokens"])[None].long()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if grids:
        inputs["pixel_values"] = torch.from_numpy(sample["patches"])
        inputs["image_grid_thw"] = torch.tensor([[1, r * merge, c * merge] for r, c in grids])
        inputs["mm_token_type_ids"] = (tokens == IMAGE).int()
    return inputs


def relative_error(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


def assert_same_states(states, logits, row, length, out) -> None:
    """Of one row of our batch and a reference's output, at every layer; padding is zero."""
    assert len(out.hidden_states) == len(states)
    for layer, expected in enumerate(out.hidden_states):
        assert relative_error(states[layer][row, :length], expected[0]) < 1e-4, f"layer {layer}"
        assert not np.any(states[layer][row, length:])
    assert relative_error(logits[row, :length], out.logits[0]) < 1e-4


@pytest.mark.parametrize("row", range(len(PROMPTS)), ids=PROMPTS.keys())
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_equal_transformers(name, row):
    """Ours in a padded batch of unequal samples, the reference one sample at a time."""
    sample, grids = samples(name)[row], list(PROMPTS.values())[row]
    with torch.no_grad():
        out = reference(name)(**reference_inputs(CONFIGS[name], sample, grids), output_hidden_states=True)
    states, logits = together(name)
    assert_same_states(states, logits, row, sample["lengths"], out)


def test_a_sample_is_the_same_alone_and_in_a_batch():
    name = "grouped-tied"
    sample = samples(name)[1]
    length = int(sample["lengths"])
    alone, _ = run(ours(name), batch([sample], length, len(sample["patches"])), (-2, -1))
    for layer, state in zip((2, 3), alone, strict=True):
        np.testing.assert_allclose(together(name)[0][layer][1, :length], state[0], atol=2e-5)


def test_padding_receives_no_gradient():
    inputs = batch(samples("grouped-tied"), 26, 52)
    graph, state = nnx.split(ours("grouped-tied"))

    @jax.jit
    @jax.grad
    def gradient(patches):
        return jnp.sum(nnx.merge(graph, state).hidden_states(inputs._replace(patches=patches)) ** 2)

    values = np.asarray(gradient(jnp.asarray(inputs.patches)))
    assert not np.any(values[inputs.patch_segments == 0])
    assert np.all(np.any(values[inputs.patch_segments > 0], axis=-1))


def test_only_the_wanted_layers_run():
    """What stands in the third layer does not matter to the state after two."""
    broken = nnx.clone(ours("grouped-tied"))
    kernel = broken.layers.mlp.down_proj.kernel
    kernel.set_value(jnp.asarray(kernel[...]).at[2].set(jnp.nan))  # kernel[...] = would write into the shared array
    states, _ = run(broken, batch(samples("grouped-tied"), 26, 52))
    np.testing.assert_array_equal(states[2], together("grouped-tied")[0][2])
    assert not np.all(np.isfinite(states[3]))


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(ValueError, match=f"layer is {layer}, accepted is -4 to 3"):
        ours("grouped-tied").hidden_states(batch(samples("grouped-tied")[:1], 26, 0), layer)


def test_states_have_the_dtype_of_the_parameters():
    graph, state = nnx.split(ours("grouped-tied"))
    model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    states, logits = run(model, batch(samples("grouped-tied"), 26, 52))
    assert {x.dtype for x in (*states, logits)} == {jnp.dtype(jnp.bfloat16)}
    assert relative_error(states[3].astype(jnp.float32), together("grouped-tied")[0][3]) < 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_folder_is_complete_for_transformers(name, tmp_path):
    """No tensor is missing, left over or misshaped, and the model that comes out is the one that went in."""
    config = CONFIGS[name]
    parameters = {path: np.asarray(value) for path, value in flatten(ours(name)).items()}
    tensors = export_weights(parameters, table(config))
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    loaded, info = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), tensors_of(reference(name))[key], key)
    again = import_weights(tensors, table(config), parameters)  # released names, as written
    assert all(np.array_equal(again[path], value) for path, value in parameters.items())


def test_a_head_that_contradicts_tying_is_refused():
    tensors = {"lm_head.weight": np.zeros((2, 2)), "model.embed_tokens.weight": np.ones((2, 2))}
    with pytest.raises(WeightError, match="tie_word_embeddings"):
        drop_head(tensors, BASE)
    tensors["lm_head.weight"] += 1
    assert set(drop_head(tensors, BASE)) == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_both_layouts(name):
    config = CONFIGS[name]
    flat = config_to_hf(config)
    nested = transformers.Qwen2VLConfig.from_dict(flat).to_dict()
    assert "text_config" in nested
    assert config_from_hf(flat) == config_from_hf(nested) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type is 'yarn'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "mrope_section is"),
    ],
)
def test_unsupported_settings_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(config_to_hf(BASE) | change)
