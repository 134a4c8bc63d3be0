"""Decoding against transformers, with the same random weights; the cache, what is drawn, and where answers end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_qwen2_vl as qwen2
import test_qwen25_vl as qwen25
import torch
import transformers
from flax import nnx
from test_qwen2_vl import IMAGE, imported, randomised, relative_error

from cinema_jax.models.qwen_vl.config import MLLMInputs, Qwen2VLConfig
from cinema_jax.models.qwen_vl.decoding import choose, decode, layers_of, nucleus, prefill, step
from cinema_jax.models.qwen_vl.processing import mrope_positions, patch_grid

VIDEO, NEW = 8, 6
# Tied and untied, written out and (what an accelerator gets) one and several heads of keys.
CONFIGS = {
    "Qwen2-VL": qwen2.CONFIGS["grouped-tied"],
    "Qwen2-VL untied": qwen2.CONFIGS["one-kv-head-untied"],
    "Qwen2.5-VL": qwen25.CONFIGS["nine-blocks-full-between"],
}
# What stands between the words of each prompt: rows and columns of merged blocks, and of a video its temporal patches.
# After one that takes longer than it is large, transformers 5 counts on elsewhere than 4 (and the paper): none does.
PROMPTS = {
    "text only": [],
    "1 image": [(2, 3, 0)],
    "2 images": [(1, 1, 0), (3, 2, 0)],
    "3 images": [(2, 2, 0), (1, 4, 0), (3, 1, 0)],
    "a video": [(5, 2, 3)],
    "a video and an image": [(4, 1, 2), (2, 2, 0)],
}
# Of Qwen2.5-VL's temporal patches: the second one of three begins at time 1.5, the third at 3.
SECONDS = 0.75


@functools.cache
def reference(name: str) -> transformers.PreTrainedModel:
    config = CONFIGS[name]
    if name.startswith("Qwen2.5"):
        model = randomised(transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig, config)
    else:
        model = randomised(transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig, config)
    model.config.video_token_id = VIDEO
    if config.tie_word_embeddings:
        # Large ones would answer each token with itself.
        model.model.language_model.embed_tokens.weight.data *= 0.2
    return model


@functools.cache
def ours(name: str):
    return imported(CONFIGS[name], reference(name))


def example(config: Qwen2VLConfig, seen, seed: int) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """A prompt as we read it, without padding, and as transformers does."""
    rng, merge = np.random.default_rng(seed), config.vision.spatial_merge_size
    words = lambda count: rng.integers(9, config.vocab_size, count)  # noqa: E731
    tokens, theirs, kinds = [], [], []
    parts = [(words(3 + seed), 0)]
    for rows, columns, frames in seen:
        parts += [(np.full(rows * columns * max(1, frames), IMAGE), 2 if frames else 1), (words(2), 0)]
    for part, kind in parts:
        tokens.append(part)
        theirs.append(np.full(len(part), VIDEO) if kind == 2 else part)
        kinds.append(np.full(len(part), kind))
    tokens, theirs, kinds = (np.concatenate(x).astype(np.int32) for x in (tokens, theirs, kinds))
    images = [one for one in seen for _ in range(max(1, one[2]))]
    patches = [rng.normal(size=(r * c * merge**2, config.vision.patch_dim)).astype(np.float32) for r, c, _ in images]
    step = SECONDS * config.vision.tokens_per_second if hasattr(config.vision, "tokens_per_second") else 1
    times = [tuple(int(step * t) for t in range(max(1, frames))) for *_, frames in seen]
    empty = np.zeros((0, config.vision.patch_dim), np.float32)
    read = {
        "tokens": tokens,
        "positions": mrope_positions(tokens == IMAGE, [one[:2] for one in seen], times),
        "patches": np.concatenate([empty, *patches]),
        "patch_segments": np.concatenate([[], *(np.full(len(x), i + 1) for i, x in enumerate(patches))]).astype(int),
        "patch_positions": np.concatenate(
            [np.zeros((0, 2), np.int32), *(patch_grid(r * merge, c * merge, merge) for r, c, _ in images)]
        ),
    }
    given = {"input_ids": torch.tensor(theirs)[None].long(), "mm_token_type_ids": torch.tensor(kinds)[None]}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    for kind, values, grids in ((0, "pixel_values", "image_grid_thw"), (1, "pixel_values_videos", "video_grid_thw")):
        own = [x for x, one in zip(patches, images, strict=True) if bool(one[2]) == bool(kind)]
        if own:
            given[values] = torch.from_numpy(np.concatenate(own))
            sizes = [(max(1, f), r * merge, c * merge) for r, c, f in seen if bool(f) == bool(kind)]
            given[grids] = torch.tensor(sizes)
    if hasattr(config.vision, "tokens_per_second") and "video_grid_thw" in given:
        given["second_per_grid_ts"] = torch.tensor([SECONDS] * len(given["video_grid_thw"]))
    return read, given


@functools.cache
def examples(name: str):
    return [example(CONFIGS[name], seen, seed) for seed, seen in enumerate(PROMPTS.values())]


@functools.cache
def inputs(name: str) -> MLLMInputs:
    """All prompts in one padded batch; what stands in the padding is not zero, because nobody may look at it."""
    reads = [read for read, _ in examples(name)]
    length, patches = (max(len(read[field]) for read in reads) + 3 for field in ("tokens", "patches"))
    patches += -patches % CONFIGS[name].vision.merge_unit
    rows = []
    for read in reads:
        filled = {"lengths": np.int32(len(read["tokens"]))}
        for field, x in read.items():
            axis, size = (-1, length) if field in ("tokens", "positions") else (0, patches)
            widths = [(0, size - x.shape[axis]) if i == axis % x.ndim else (0, 0) for i in range(x.ndim)]
            filled[field] = np.pad(x, widths, constant_values=0 if field == "patch_segments" else 9)
        rows.append(filled)
    return MLLMInputs.from_batch({field: np.stack([row[field] for row in rows]) for field in rows[0]})


def answers(name: str, **how):
    return decode(ours(name), inputs(name), **({"stop": [-1, -1], "max_new_tokens": NEW, "room": 8} | how))


@functools.cache
def greedy(name: str) -> np.ndarray:
    return answers(name).tokens[:, :NEW]


@pytest.mark.parametrize("row", range(len(PROMPTS)), ids=PROMPTS.keys())
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_equal_transformers_token_by_token(name, row):
    """Ours in one padded batch of unequal prompts, transformers' one by one."""
    _, given = examples(name)[row]
    out = reference(name).generate(**given, max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    np.testing.assert_array_equal(greedy(name)[row], out[0, given["input_ids"].shape[1] :].numpy())


@pytest.mark.parametrize("name", ["Qwen2-VL untied", "Qwen2.5-VL"])
def test_the_answers_compared_are_not_alike(name):
    assert len({tuple(row) for row in greedy(name)}) == len(PROMPTS)
    assert len(np.unique(greedy(name))) > 10


@functools.partial(jax.jit, static_argnames=("graph", "stacked"))
def _logits(graph, state, inputs, tokens, stacked):
    """Of the prompts, and after each of the further tokens (B, new)."""
    model, length = nnx.merge(graph, state), inputs.tokens.shape[1]
    layers = nnx.split(model.layers) if stacked else layers_of(model)
    place = jnp.arange(length + tokens.shape[1])
    read = place < inputs.lengths[:, None]
    begin = jnp.max(jnp.where(read[:, None, :length], inputs.positions, -1), axis=(1, 2)) + 1
    logits, cache = prefill(model, layers, inputs, tokens.shape[1])
    found = [logits]
    for i in range(tokens.shape[1]):
        seen = read | ((place >= length) & (place <= length + i))
        logits, cache = step(model, layers, tokens[:, i], begin + i, cache, jnp.int32(length + i), seen)
        found.append(logits)
    return jnp.stack(found, axis=1)


@pytest.mark.parametrize("stacked", [False, True], ids=["written out", "stacked"])
@pytest.mark.parametrize("name", ["Qwen2-VL", "Qwen2.5-VL"])
def test_the_cache_says_what_all_tokens_anew_say(name, stacked):
    """Of layers one by one, as on a CPU, and stacked, as elsewhere."""
    tokens = np.random.default_rng(1).integers(9, 50, (len(PROMPTS), 2)).astype(np.int32)
    found = _logits(*nnx.split(ours(name)), inputs(name), tokens, stacked)
    for row, (read, _) in enumerate(examples(name)):
        _, expected = qwen2.run(ours(name), longer(inputs(name), row, tokens[row]), (0,))
        first = len(read["tokens"]) - 1
        assert relative_error(found[row], expected[0, first : first + 3]) < 1e-5


def longer(inputs: MLLMInputs, row: int, tokens: np.ndarray) -> MLLMInputs:
    """One prompt with further tokens behind it; all are as long, so that one program computes them."""
    one, end = MLLMInputs(*(np.array(x[row : row + 1]) for x in inputs)), int(inputs.lengths[row])
    begin = one.positions[0, :, :end].max() + 1
    one.tokens[0, end : end + len(tokens)] = tokens
    one.positions[0, :, end : end + len(tokens)] = begin + np.arange(len(tokens))
    return one._replace(lengths=one.lengths + len(tokens))


def test_answers_end_with_any_of_the_stop_tokens_and_at_the_limit():
    name = "Qwen2-VL untied"
    stop = [int(greedy(name)[0, 2]), int(greedy(name)[4, 1])]
    out = answers(name, stop=stop)
    for row, full in enumerate(greedy(name)):
        ends = np.flatnonzero(np.isin(full, stop))
        length = ends[0] if len(ends) else NEW
        assert (out.lengths[row], out.finished[row]) == (length, len(ends) > 0)
        np.testing.assert_array_equal(out.tokens[row, :length], full[:length])
    short = answers(name, max_new_tokens=2)
    np.testing.assert_array_equal(short.tokens[:, :2], greedy(name)[:, :2])
    assert set(short.lengths) == {2}
    assert not short.finished.any()


def test_what_is_drawn_follows_from_the_seed_of_the_row():
    name, count = "Qwen2-VL untied", len(PROMPTS)
    seeds = np.arange(count, dtype=np.uint32)
    first = answers(name, temperature=30.0, seeds=seeds).tokens
    np.testing.assert_array_equal(first, answers(name, temperature=30.0, seeds=seeds).tokens)
    other = answers(name, temperature=30.0, seeds=np.where(seeds == 2, 77, seeds).astype(np.uint32)).tokens
    assert np.array_equal(other[seeds != 2], first[seeds != 2])
    assert not np.array_equal(other[2], first[2])
    # The fewest tokens that make up almost nothing are the most likely one.
    np.testing.assert_array_equal(
        answers(name, temperature=30.0, top_p=1e-6, seeds=seeds).tokens[:, :NEW], greedy(name)
    )


def test_answering_again_compiles_nothing_whatever_is_asked_for():
    from cinema_jax.models.qwen_vl import decoding

    answers("Qwen2-VL untied")
    before = decoding._decode._cache_size()
    seeds = np.arange(len(PROMPTS), dtype=np.uint32)
    answers("Qwen2-VL untied", stop=[3, 4], max_new_tokens=3, temperature=0.7, top_p=0.9, seeds=seeds)
    assert decoding._decode._cache_size() == before


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_the_nucleus_is_that_of_transformers(top_p):
    logits = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32) * 2
    expected = transformers.TopPLogitsWarper(top_p)(None, torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(nucleus(jnp.asarray(logits), jnp.float32(top_p)), expected)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Closed form: probabilities to the power of 1 / temperature, and the last one cut off."""
    probabilities = np.array([0.3, 0.05, 0.5, 0.15])
    count, temperature = 20_000, 0.5
    sharpened = probabilities ** (1 / temperature) / np.sum(probabilities ** (1 / temperature))
    cut = np.where(probabilities == 0.05, 0, sharpened) / (1 - sharpened[1])
    logits = jnp.broadcast_to(jnp.log(probabilities), (count, 4))
    keys = jax.random.split(jax.random.key(0), count)
    # The first three of .685, .247, .062 and .007 add up to .993.
    drawn = choose(logits, keys, jnp.float32(temperature), jnp.float32(0.99))
    frequencies = np.bincount(np.asarray(drawn), minlength=4) / count
    assert frequencies[1] == 0
    np.testing.assert_allclose(frequencies, cut, atol=4 * np.sqrt(0.25 / count))
