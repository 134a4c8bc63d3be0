"""The MLLM's inputs: against transformers' own processing, and the rules of shapes, limits and errors."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from released_tokenizers import released_tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_smart_resize

from cinema_jax.errors import InputError
from cinema_jax.models.qwen_vl.config import MLLMInputs, Qwen2VLVisionConfig
from cinema_jax.models.qwen_vl.processing import (
    DEMO_TEMPLATE,
    SYSTEM,
    Processor,
    Template,
    collate,
    fit_size,
    mrope_positions,
    patch_grid,
    patchify,
    smart_resize,
)
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer, load_tokenizer

VISION = Qwen2VLVisionConfig()
SMALL = Qwen2VLVisionConfig(patch_size=4, temporal_patch_size=1)
WORDS = ["a", "red", "fox", "meets", "the", "blue", "dog", "and", "jumps", "over", "it"]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture, so that resizing filters agree about it."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (9 + c + seed)) + np.cos(y / (7 + 2 * c)) for c in range(3)]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8)


def small_processor(**settings) -> Processor:
    settings = {"max_length": 64, "max_patches": 64, "max_pixels": 32 * 32, "min_pixels": 8 * 8} | settings
    return Processor(build_word_tokenizer(WORDS), SMALL, DEMO_TEMPLATE, **settings)


def test_smart_resize_equals_transformers():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(x) for x in np.exp(rng.uniform(0, 8, 2)).astype(int))
        unit = int(rng.choice([8, 28, 32]))
        low = int(unit**2 * np.exp(rng.uniform(0, 3)))
        high = int(low * np.exp(rng.uniform(0, 5)))
        if max(height, width) <= 200 * min(height, width):
            expected = reference_smart_resize(height, width, unit, low, high)
            # The reference can return an empty side where an image is thinner than half a unit; we never do.
            expected = tuple(max(unit, side) for side in expected)
            assert smart_resize(height, width, unit, low, high) == expected, (height, width, unit, low, high)


def test_extreme_aspect_is_refused():
    with pytest.raises(ValueError, match="4020 x 20 pixels"):
        smart_resize(20, 4020, 28, 784, 10**6)


@pytest.mark.parametrize("size", [(10, 2000), (2000, 10), (500, 500), (1, 1), (30, 400)])
def test_fitted_size_never_exceeds_the_maximum(size):
    for blocks in (1, 2, 5, 16):
        height, width = fit_size(*size, 28, 4 * 28 * 28, blocks * 28 * 28)
        assert height % 28 == width % 28 == 0
        assert 0 < height * width <= blocks * 28 * 28


@pytest.mark.parametrize("settings", [{}, {"patch_size": 16, "temporal_patch_size": 1, "merge_size": 3}])
@pytest.mark.parametrize("size", [(56, 84), (112, 28), (300, 200)])
def test_patches_equal_transformers(size, settings):
    """Also with a resize: both sides use Pillow's bicubic filter."""
    ours = Qwen2VLVisionConfig(
        patch_size=settings.get("patch_size", 14),
        temporal_patch_size=settings.get("temporal_patch_size", 2),
        spatial_merge_size=settings.get("merge_size", 2),
    )
    unit = ours.pixel_unit
    reference = Qwen2VLImageProcessorPil(size={"shortest_edge": unit**2, "longest_edge": 16 * unit**2}, **settings)
    image = picture(*size)
    expected = reference(images=[image], input_data_format="channels_last", return_tensors="np")
    tokenizer = build_word_tokenizer(WORDS)
    limits = {"max_length": 200, "max_patches": 16 * ours.merge_unit, "max_pixels": 16 * unit**2}
    out = Processor(tokenizer, ours, DEMO_TEMPLATE, **limits, min_pixels=unit**2)("", [image])
    count = len(expected["pixel_values"])
    np.testing.assert_allclose(out["patches"][:count], expected["pixel_values"], atol=1e-5)
    assert not np.any(out["patches"][count:])
    _, rows, columns = (int(x) for x in expected["image_grid_thw"][0])
    np.testing.assert_array_equal(out["patch_positions"][:count], patch_grid(rows, columns, ours.spatial_merge_size))


def reference_model() -> transformers.Qwen2VLModel:
    config = transformers.Qwen2VLConfig(
        text_config={"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 0, "vocab_size": 8},
        vision_config={"depth": 0, "embed_dim": 8, "hidden_size": 8, "num_heads": 1},
    )
    with torch.device("meta"):
        return transformers.Qwen2VLModel(config)


@pytest.mark.parametrize("grids", [[], [(2, 3)], [(4, 1), (1, 1), (2, 5)]])
@pytest.mark.parametrize("text", [(3, 2), (1, 1)])
def test_positions_equal_transformers(grids, text):
    pieces = [np.zeros(text[0], bool)]
    for rows, columns in grids:
        pieces += [np.ones(rows * columns, bool), np.zeros(text[1], bool)]
    is_image = np.concatenate(pieces)
    expected, _ = reference_model().get_rope_index(
        torch.zeros(1, len(is_image), dtype=torch.long),
        torch.from_numpy(is_image.astype(np.int32))[None],
        image_grid_thw=torch.tensor([[1, 2 * r, 2 * c] for r, c in grids]) if grids else None,
    )
    np.testing.assert_array_equal(mrope_positions(is_image, grids), expected[:, 0])


def test_images_that_touch_are_told_apart():
    positions = mrope_positions(np.ones(3, bool), [(1, 2), (1, 1)])
    np.testing.assert_array_equal(positions, [[0, 0, 2], [0, 0, 2], [0, 1, 2]])


def test_example_has_fixed_shapes_and_suffix_padding():
    processor = small_processor()
    out = processor("the red fox meets the dog", [picture(16, 16), picture(8, 24)])
    assert {name: (x.shape, x.dtype) for name, x in out.items()} == {
        "tokens": ((64,), np.int32),
        "lengths": ((), np.int32),
        "positions": ((3, 64), np.int32),
        "patches": ((64, 48), np.float32),
        "patch_segments": ((64,), np.int32),
        "patch_positions": ((64, 2), np.int32),
    }
    length = int(out["lengths"])
    assert np.all(out["tokens"][:length] != processor.tokenizer.pad_token_id)
    assert np.all(out["tokens"][length:] == processor.tokenizer.pad_token_id)
    np.testing.assert_array_equal(out["patch_segments"], [1] * 16 + [2] * 12 + [0] * 36)
    assert np.sum(out["tokens"] == processor.image_token_id) == 4 + 3
    text = processor.tokenizer.decode([t for t in out["tokens"][:length] if t != processor.image_token_id])
    assert text == (
        "show each subject of these images in one video : image 1 image 2 the red fox meets the dog answer :"
    )


def test_answer_follows_and_is_masked_for_the_loss():
    processor = small_processor()
    asked, answered = processor("a dog", [picture(8, 8)]), processor("a dog", [picture(8, 8)], answer="the blue dog")
    start, end = int(asked["lengths"]), int(answered["lengths"])
    np.testing.assert_array_equal(asked["tokens"][:start], answered["tokens"][:start])
    np.testing.assert_array_equal(np.flatnonzero(answered["loss_mask"]), np.arange(start, end))
    assert processor.tokenizer.decode(answered["tokens"][start:end]) == "the blue dog <eos>"
    steps = np.diff(answered["positions"][:, start - 1 : end])
    assert np.all(steps == 1)


@pytest.mark.parametrize("count", [0, 1, 3, 7, 16])
def test_any_number_of_images_fits_the_patch_buffer(count):
    processor = small_processor(max_length=128)
    images = [picture(20 + 9 * i, 90 - 4 * i) for i in range(count)]
    out = processor("a fox", images)
    assert out["patch_segments"].max(initial=0) == count
    assert len(set(out["patch_segments"]) - {0}) == count
    used = np.bincount(out["patch_segments"], minlength=count + 1)[1:]
    assert np.all(used <= 64 // max(1, count))
    assert np.all(used % 4 == 0)


def test_limits_are_named_with_the_length():
    with pytest.raises(ValueError, match="has 54 tokens, 4 of them of 1 images: max_length is 40"):
        small_processor(max_length=40)(" ".join(["fox"] * 36), [picture(16, 16)])
    with pytest.raises(ValueError, match="17 images need at least 68 patches: max_patches is 64"):
        small_processor()("a fox", [picture(16, 16)] * 17)


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("a <image> fox", [], "holds '<image>'"),
        ("a fox <eos>", [], "holds '<eos>'"),
        ("a fox", [np.zeros((8, 8, 4), np.uint8)], r"uint8 \[8, 8, 4\]"),
        ("a fox", [np.zeros((8, 8, 3), np.float32)], r"float32 \[8, 8, 3\]"),
        ("a fox", [np.zeros((0, 8, 3), np.uint8)], r"uint8 \[0, 8, 3\]"),
    ],
)
def test_bad_inputs_are_refused(prompt, images, message):
    with pytest.raises(ValueError, match=message):
        small_processor()(prompt, images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_patches": 30}, "max_patches is 30"),
        ({"min_pixels": 2000}, "min_pixels and max_pixels are 2000 and 1024"),
        ({"max_pixels": 10, "min_pixels": 10}, "max_pixels >= 64"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_processor(**settings)


def test_a_template_needs_its_image_token_and_the_tokenizer_must_know_it():
    with pytest.raises(ValueError, match="with <image> once"):
        Template(image="image {number}", image_token="<image>")
    with pytest.raises(ValueError, match="no token of its own"):
        Processor(build_word_tokenizer(WORDS), SMALL, Template())


def test_prompt_may_hold_braces_and_anything_printable():
    out = small_processor()("{number} {} 100% ~ 狐", [picture(8, 8)])
    assert out["lengths"] > 0


def test_collated_examples_are_a_batch():
    processor = small_processor()
    batch = collate([processor("a fox", [picture(8, 8)], answer="dog"), processor("", [], answer="the")])
    inputs = MLLMInputs.from_batch(batch)
    assert inputs.tokens.shape == (2, 64)
    assert inputs.positions.shape == (2, 3, 64)
    assert inputs.lengths.shape == (2,)
    assert batch["loss_mask"].shape == (2, 64)


def test_processor_survives_pickling():
    processor = small_processor()
    again = pickle.loads(pickle.dumps(processor))
    for name, value in processor("a red fox", [picture(9, 30)]).items():
        np.testing.assert_array_equal(again("a red fox", [picture(9, 30)])[name], value)


def test_processing_does_not_import_jax():
    code = (
        "import sys, cinema_jax.models.qwen_vl.processing, cinema_jax.models.qwen_vl.tokenizer;"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_word_tokenizer_keeps_known_words_whole_and_spells_the_others():
    tokenizer = build_word_tokenizer([*WORDS, "Zebra"])

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert pieces("The ZEBRA, jumps!") == ["the", "zebra", ",", "jumps", "!"]
    assert pieces("cat") == ["c", "##a", "##t"]
    assert pieces("café 42") == ["c", "##a", "##f", "##e", "4", "2"]
    assert pieces("red狐fox 狐") == ["<unk>", "<unk>"]
    assert tokenizer.decode(tokenizer("a cat jumps")["input_ids"]) == "a cat jumps"


def test_word_tokenizer_depends_on_the_set_of_words_only_and_survives_saving(tmp_path):
    tokenizer = build_word_tokenizer(WORDS)
    again = build_word_tokenizer(sorted([*WORDS, "Fox"]))
    assert tokenizer.get_vocab() == again.get_vocab()
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values()))
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "a red foxy <image> , dog 7 <eos>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
    assert loaded.decode(loaded("a foxy dog")["input_ids"]) == "a foxy dog"
    by_file = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert by_file(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_loading_a_tokenizer_never_asks_the_network(tmp_path):
    with pytest.raises(ValueError, match="a folder with a saved tokenizer"):
        load_tokenizer(tmp_path / "Qwen" / "Qwen2-VL-2B-Instruct")


@pytest.fixture(scope="module")
def qwen_tokenizer():
    return load_tokenizer(released_tokenizer("Qwen"))


def test_real_tokenizer_gives_the_tokens_of_its_own_chat_template(qwen_tokenizer):
    processor = Processor(qwen_tokenizer, VISION)
    images = [picture(100, 60), picture(56, 140, 3)]
    prompt = "Two friends meet, at 5 o'clock\n in the café: naïve 狐!  "
    out = processor(prompt, images)
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    chat = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Image 1: {place}\nImage 2: {place}\n{prompt}"},
    ]
    text = qwen_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    reference = Qwen2VLImageProcessorPil(size={"shortest_edge": 4 * 28 * 28, "longest_edge": 1024 * 28 * 28})
    pixels = reference(images=images, input_data_format="channels_last", return_tensors="np")
    for grid in pixels["image_grid_thw"]:  # as transformers' processor: each place becomes as many as its patches need
        text = text.replace("<|image_pad|>", "<|placeholder|>" * int(grid.prod() // 4), 1)
    tokens = qwen_tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"))["input_ids"]
    length = int(out["lengths"])
    np.testing.assert_array_equal(out["tokens"][:length], tokens)
    types = (np.asarray(tokens) == 151655).astype(np.int32)
    positions, _ = reference_model().get_rope_index(
        torch.tensor([tokens]),
        torch.from_numpy(types)[None],
        image_grid_thw=torch.from_numpy(pixels["image_grid_thw"]),
    )
    np.testing.assert_array_equal(out["positions"][:, :length], positions[:, 0])
    count = len(pixels["pixel_values"])
    np.testing.assert_allclose(out["patches"][:count], pixels["pixel_values"], atol=1e-5)


def test_real_tokenizer_ends_an_answer_with_the_end_of_the_message(qwen_tokenizer):
    out = Processor(qwen_tokenizer, VISION, max_length=256)("Who is this?", [], answer="A red fox.")
    answer = out["tokens"][out["loss_mask"]]
    assert qwen_tokenizer.decode(answer) == "A red fox.<|im_end|>"
    with pytest.raises(ValueError, match=r"holds '<\|im_end\|>'"):
        Processor(qwen_tokenizer, VISION)("hello<|im_end|>", [])


def test_patchify_orders_colour_frame_row_column():
    config = Qwen2VLVisionConfig(patch_size=2, temporal_patch_size=2, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    patches = patchify(image[None], config).reshape(8, 3, 2, 2, 2) * 255
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    for patch, (row, column) in zip(patches, order, strict=True):
        expected = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].transpose(2, 0, 1)
        np.testing.assert_allclose(patch, np.repeat(expected[:, None], 2, axis=1), rtol=1e-6)


@pytest.mark.parametrize("count", [-1, 10_001, 10**9])
def test_a_tokenizer_does_not_say_how_much_memory_it_takes(tmp_path, count):
    build_word_tokenizer(["bird"]).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "T5Tokenizer", "extra_ids": count}))
    with pytest.raises(InputError, match=f"extra_ids is {count}; it must be from 0 to 10000"):
        load_tokenizer(tmp_path)


def test_no_code_in_a_tokenizer_s_folder_runs(tmp_path):
    build_word_tokenizer(["bird"]).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    file = tmp_path / "tokenizer_config.json"
    saved = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    # Named with a class of transformers, it is that; with its own, it is refused.
    file.write_text(json.dumps(saved))
    assert load_tokenizer(tmp_path)("bird")["input_ids"]
    file.write_text(json.dumps(saved | {"tokenizer_class": "Evil"}))
    with pytest.raises(InputError, match="tokenizer_class is 'Evil'; accepted: T5Tokenizer"):
        load_tokenizer(tmp_path)
    del saved["tokenizer_class"]
    file.write_text(json.dumps(saved))
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
