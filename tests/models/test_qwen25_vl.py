"""Qwen2.5-VL against transformers, with the same random weights; what it shares with Qwen2-VL is tested there."""

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
from safetensors.numpy import save_file
from test_qwen2_vl import (
    IMAGE,
    abstract,
    assert_same_states,
    batch,
    example,
    imported,
    randomised,
    reference_inputs,
    relative_error,
    run,
    tensors_of,
)
from tiny import tiny_values

from cinema_jax.config import parse
from cinema_jax.data.example import Reference
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.config import (
    MLLMInputs,
    Qwen2VLConfig,
    Qwen2VLVisionConfig,
    Qwen25VLVisionConfig,
    config_from_hf,
    config_to_hf,
)
from cinema_jax.models.qwen_vl.model import Qwen2VL, build_vision_tower
from cinema_jax.models.qwen_vl.processing import collate, mrope_positions
from cinema_jax.models.qwen_vl.vision25 import Qwen25VLVisionTower, window_segments
from cinema_jax.models.qwen_vl.weights import table
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into

# Windows of 2 x 2 merge blocks, 16 pixels or 4 patches a side.
VISION = Qwen25VLVisionConfig(
    depth=3,
    hidden_size=16,
    num_heads=2,
    intermediate_size=20,
    out_hidden_size=32,
    window_size=16,
    fullatt_block_indexes=(2,),
    patch_size=4,
)
BASE = Qwen2VLConfig(
    vision=VISION,
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    mrope_section=(1, 1, 2),
    tie_word_embeddings=True,
    image_token_id=IMAGE,
)
CONFIGS = {
    "full-last-tied": BASE,
    # More blocks than a CPU gets written out: they run as a scan. Windows of 3 x 3 blocks.
    "nine-blocks-full-between": dataclasses.replace(
        BASE,
        tie_word_embeddings=False,
        vision=dataclasses.replace(VISION, depth=9, window_size=24, fullatt_block_indexes=(1, 5)),
    ),
    # 20 pixels are 2.2 blocks of 9: windows of 2 x 2. The order of the indexes says nothing.
    "full-first-other-patches": dataclasses.replace(
        BASE,
        rms_norm_eps=1e-4,
        num_key_value_heads=1,
        vision=Qwen25VLVisionConfig(
            depth=3,
            hidden_size=24,
            num_heads=3,
            intermediate_size=17,
            out_hidden_size=32,
            window_size=20,
            fullatt_block_indexes=(1, 0),
            patch_size=3,
            temporal_patch_size=1,
            spatial_merge_size=3,
            image_mean=(0.5, 0.4, 0.3),
            rope_theta=100.0,
        ),
    ),
    # A window is one merge block of one patch: a patch sees itself alone.
    "windows-only-unmerged": dataclasses.replace(
        BASE,
        vision=dataclasses.replace(
            VISION, depth=1, window_size=4, fullatt_block_indexes=(), spatial_merge_size=1, temporal_patch_size=1
        ),
    ),
}
# Grids (rows, columns) of merged blocks of the images of one prompt.
PROMPTS = {
    "text only": [],
    "one window": [(2, 2)],
    "smaller than a window": [(1, 1)],
    "whole windows": [(4, 6)],
    "cut windows": [(3, 5)],
    "wide and tall": [(1, 7), (5, 1)],
    "four images": [(2, 3), (1, 1), (4, 2), (3, 3)],
}
LENGTH, BLOCKS = 43, 25  # of the batch: tokens, and merge blocks of images


@functools.cache
def reference(name: str) -> transformers.Qwen2_5_VLForConditionalGeneration:
    return randomised(transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig, CONFIGS[name])


@functools.cache
def ours(name: str) -> Qwen2VL:
    return imported(CONFIGS[name], reference(name))


@functools.cache
def samples(name: str) -> list[dict[str, np.ndarray]]:
    return [example(CONFIGS[name], grids, seed, 3 + seed) for seed, grids in enumerate(PROMPTS.values())]


@functools.cache
def together(name: str):
    """All prompts in one padded batch."""
    patches = BLOCKS * CONFIGS[name].vision.merge_unit
    return run(ours(name), batch(samples(name), LENGTH, patches), (0, 1, 2))


@pytest.mark.parametrize("row", range(len(PROMPTS)), ids=PROMPTS.keys())
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_equal_transformers(name, row):
    """Ours in a padded batch of unequal samples, the reference one sample at a time with positions of its own."""
    sample, grids = samples(name)[row], list(PROMPTS.values())[row]
    with torch.no_grad():
        out = reference(name)(**reference_inputs(CONFIGS[name], sample, grids), output_hidden_states=True)
    states, logits = together(name)
    assert_same_states(states, logits, row, sample["lengths"], out)


@pytest.mark.parametrize("full", [(), (0,), (1,)])
def test_a_patch_moves_its_window_alone_unless_a_block_sees_all(full):
    """Which merged embeddings depend on the first patch of the second of two images."""
    config = dataclasses.replace(VISION, depth=2, fullatt_block_indexes=full)
    tower = build_vision_tower(config, 32, rngs=nnx.Rngs(0))
    grids = [(2, 2), (3, 3)]
    sample = example(dataclasses.replace(BASE, vision=config), grids)
    inputs = jax.tree.map(jnp.asarray, batch([sample], LENGTH, 60))
    graph, state = nnx.split(tower)

    @jax.jit
    def embed(patches):
        return nnx.merge(graph, state)(patches, inputs.patch_segments, inputs.patch_positions)[0]

    moved = np.any(np.abs(embed(inputs.patches.at[0, 16].add(1)) - embed(inputs.patches)) > 1e-6, axis=-1)
    window = [[True, True, False], [True, True, False], [False, False, False]]
    np.testing.assert_array_equal(moved[4:13].reshape(3, 3), np.ones((3, 3), bool) if full else window)
    assert not np.any(moved[:4])
    assert not np.any(moved[13:])


def test_windows_of_unequal_images_never_share_a_number():
    """Compared as sets of patches with those of each image cut up alone."""
    sample = batch([example(BASE, [(5, 1), (1, 7), (3, 3)])], LENGTH, 100)
    segments = sample.patch_segments
    positions = np.where(segments[..., None] > 0, sample.patch_positions, 99)
    numbers = np.asarray(window_segments(jnp.asarray(segments), jnp.asarray(positions), 4))[0]
    told = [(int(s), *(p // 4)) if s else 0 for s, p in zip(segments[0], positions[0], strict=True)]
    assert len(set(numbers)) == len(set(told)) == len(set(zip(numbers, told, strict=True))) == 3 + 4 + 4 + 1
    assert not np.any(numbers[segments[0] == 0])


def test_padding_receives_no_gradient():
    inputs = batch(samples("full-last-tied"), LENGTH, 4 * BLOCKS)
    graph, state = nnx.split(ours("full-last-tied"))

    @jax.jit
    @jax.grad
    def gradient(patches):
        return jnp.sum(nnx.merge(graph, state).hidden_states(inputs._replace(patches=patches)) ** 2)

    values = np.asarray(gradient(jnp.asarray(inputs.patches)))
    assert not np.any(values[inputs.patch_segments == 0])
    assert np.all(np.any(values[inputs.patch_segments > 0], axis=-1))


def test_states_have_the_dtype_of_the_parameters():
    graph, state = nnx.split(ours("full-last-tied"))
    model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    inputs = batch(samples("full-last-tied"), LENGTH, 4 * BLOCKS)
    states, _ = run(model, inputs, (0, 2))
    assert {x.dtype for x in states} == {jnp.dtype(jnp.bfloat16)}
    assert relative_error(states[0].astype(jnp.float32), together("full-last-tied")[0][0]) < 0.1


@pytest.mark.parametrize("grids", [[], [(2, 3)], [(4, 1), (1, 1), (2, 5)]])
def test_positions_of_images_equal_transformers(grids):
    pieces = [np.zeros(3, bool)]
    for rows, columns in grids:
        pieces += [np.ones(rows * columns, bool), np.zeros(2, bool)]
    is_image = np.concatenate(pieces)
    expected, _ = reference("full-last-tied").model.get_rope_index(
        torch.zeros(1, len(is_image), dtype=torch.long),
        torch.from_numpy(is_image.astype(np.int32))[None],
        image_grid_thw=torch.tensor([[1, 2 * r, 2 * c] for r, c in grids]) if grids else None,
    )
    np.testing.assert_array_equal(mrope_positions(is_image, grids), expected[:, 0])


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_folder_is_complete_for_transformers(name, tmp_path):
    """No tensor is missing, left over or misshaped, and the model that comes out is the one that went in."""
    config = CONFIGS[name]
    parameters = {path: np.asarray(value) for path, value in flatten(ours(name)).items()}
    tensors = export_weights(parameters, table(config))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    loaded, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), tensors_of(reference(name))[key], key)
    again = import_weights(tensors, table(config), parameters)  # released names, as written
    assert all(np.array_equal(again[path], value) for path, value in parameters.items())


# The config.json of released models, with the fields that our reading looks at.
RELEASED = {
    "3B": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_hidden_layers": 36,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


def released(size: str) -> dict:
    return RELEASED[size] | {
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "image_token_id": 151655,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": RELEASED[size]["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


def test_a_run_reads_its_folder_and_feeds_its_tower(tmp_path):
    """From a Hugging Face folder in `weights.mllm` to states that depend on the reference."""
    values = tiny_values()
    values.weights.mllm = ""
    text = Run.open(parse(values), tmp_path / "sizes").part_config("mllm")
    vision = dataclasses.replace(VISION, patch_size=8, window_size=32, out_hidden_size=text.hidden_size)
    config = dataclasses.replace(text, vision=vision)
    params = parts.initialise("mllm", config, 0)
    parts.write("mllm", config, params, tmp_path / "mllm")
    values.weights.mllm = str(tmp_path / "mllm")
    opened = Run.open(parse(values), tmp_path / "run")
    assert opened.part_config("mllm") == config
    read = opened.params("mllm")
    assert all(np.array_equal(read[path], x) for path, x in params.items())

    picture = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)
    references = [Reference(image, None, "fox") for image in picture]
    examples = [opened.preprocessor().conditions("they meet", [reference]) for reference in references]
    model = abstract(config)
    load_into(model, {path.removeprefix("mllm/"): x for path, x in read.items()})
    (states,), _ = run(model, MLLMInputs.from_batch(collate(examples)), (-1,))
    assert np.abs(states[0] - states[1])[examples[0]["lengths"] - 1].max() > 1e-3


def test_defaults_are_the_released_tower():
    assert config_from_hf(released("7B")).vision == Qwen25VLVisionConfig()
    assert Qwen25VLVisionConfig().window_patches == 8


@pytest.mark.parametrize("name", [*CONFIGS, *RELEASED])
def test_config_survives_both_layouts(name):
    config = CONFIGS[name] if name in CONFIGS else config_from_hf(released(name))
    flat = config_to_hf(config)
    nested = transformers.Qwen2_5_VLConfig.from_dict(flat).to_dict()
    assert "text_config" in nested
    assert config_from_hf(json.loads(json.dumps(flat))) == config_from_hf(nested) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "vision_config.hidden_act is 'gelu'"),
        ({"in_chans": 4}, "vision_config.in_chans is 4"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "vision_config rope type is 'yarn'"),
        ({"out_hidden_size": 64}, "vision.out_hidden_size is 64, accepted is hidden_size, 32"),
        ({"window_size": 7}, "vision.window_size is 7, accepted is at least one merge block, 8 pixels"),
        ({"fullatt_block_indexes": [1, 3]}, r"vision.fullatt_block_indexes is \(1, 3\), .* 0 to 2"),
        ({"num_heads": 3}, "vision.hidden_size is 16, accepted is a multiple of 4 heads"),
        ({"depth": 0}, "vision.depth is 0"),
    ],
)
def test_unsupported_settings_are_refused_by_name(change, message):
    hf = config_to_hf(BASE)
    with pytest.raises(ValueError, match=message):
        config_from_hf(hf | {"vision_config": hf["vision_config"] | change})


def test_a_tower_without_its_width_is_refused():
    hf = config_to_hf(BASE)
    del hf["vision_config"]["hidden_size"]
    with pytest.raises(ValueError, match="vision_config is 'without hidden_size'"):
        config_from_hf(hf)


def test_the_config_chooses_the_tower():
    assert isinstance(abstract(BASE).visual, Qwen25VLVisionTower)
    older = dataclasses.replace(BASE, vision=Qwen2VLVisionConfig(depth=1, embed_dim=16, num_heads=2))
    assert not isinstance(abstract(older).visual, Qwen25VLVisionTower)
