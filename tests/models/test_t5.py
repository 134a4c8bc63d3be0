"""The T5 encoder against transformers' `T5EncoderModel`."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from flax import nnx
from released_tokenizers import released_tokenizer
from transformers.models.t5.modeling_t5 import T5Attention

from cinema_jax.config import default, parse
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.errors import InputError
from cinema_jax.models.qwen_vl.tokenizer import load_tokenizer
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.t5.model import T5Encoder, relative_position_buckets
from cinema_jax.models.t5.weights import config_from_hf, config_to_hf, table, tie, untie
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into
from cinema_jax.weights.shards import write_tensors
from cinema_jax.weights.tensors import WeightError

TINY = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4)
CONFIGS = {
    "tiny": TINY,
    # The inner width differs from d_model, as in no XXL but in the small v1.1 models.
    "narrow": dataclasses.replace(TINY, d_model=24, d_kv=6, num_heads=6, num_layers=2, d_ff=40),
    "few-buckets": dataclasses.replace(TINY, relative_attention_num_buckets=8, relative_attention_max_distance=20),
    "one-layer": dataclasses.replace(TINY, num_layers=1, num_heads=1, layer_norm_epsilon=1e-3),
    "umt5": dataclasses.replace(TINY, model_type="umt5"),
    "umt5, few buckets": dataclasses.replace(
        TINY, model_type="umt5", num_layers=2, relative_attention_num_buckets=8, relative_attention_max_distance=20
    ),
}
CLASSES = {
    "t5": (transformers.T5Config, transformers.T5EncoderModel),
    "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
}


def original(config: T5Config) -> transformers.T5EncoderModel | transformers.UMT5EncoderModel:
    torch.manual_seed(0)
    settings, network = CLASSES[config.model_type]
    model = network(settings(**config_to_hf(config))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms start at 1, biases are too small to matter; neither would show an error.
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            if "relative_attention_bias" in name:
                parameter.normal_(std=1.0)
    return model


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in model.state_dict().items()}


def ours(config: T5Config, model: torch.nn.Module) -> T5Encoder:
    encoder = nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))
    load_into(encoder, import_weights(untie(tensors_of(model)), table(config), flatten(encoder)))
    return encoder


@pytest.fixture(scope="module")
def encoder() -> T5Encoder:
    return T5Encoder(TINY, rngs=nnx.Rngs(0))


def features(encoder: T5Encoder, tokens, lengths=None) -> jax.Array:
    graph, state = nnx.split(encoder)
    return jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))(state, tokens, lengths)


def relative_error(a, b) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_features_match_transformers(name):
    config = CONFIGS[name]
    model = original(config)
    encoder = ours(config, model)
    # Longer than the largest distance of the configuration that shrinks it.
    length, lengths = 40, np.array([40, 7, 1])
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (3, length))
    real = np.arange(length) < lengths[:, None]
    tokens = np.where(real, tokens, 0)
    for masked in False, True:
        with torch.no_grad():
            mask = torch.tensor(real.astype(np.int64)) if masked else None
            # Without a mask transformers takes all positions as real, which is what CogVideoX does.
            expected = model(torch.tensor(tokens), attention_mask=mask).last_hidden_state.numpy()
        got = np.asarray(features(encoder, tokens, lengths if masked else None))
        assert relative_error(got, expected) < 1e-4, f"masked: {masked}"


def test_226_positions_match_transformers():
    model = original(TINY)
    tokens = np.zeros((1, 226), np.int64)
    tokens[0, :9] = np.arange(1, 10)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).last_hidden_state.numpy()
    assert relative_error(np.asarray(features(ours(TINY, model), tokens)), expected) < 1e-4


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 256), (8, 20), (16, 64), (64, 512)])
def test_buckets_are_those_of_transformers_at_every_distance(buckets, distance):
    offset = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    expected = T5Attention._relative_position_bucket(offset, True, buckets, distance).numpy()
    np.testing.assert_array_equal(relative_position_buckets(600, buckets, distance), expected)


@pytest.mark.parametrize("name", ["tiny", "umt5"])
def test_exported_weights_load_into_transformers_strictly(name, tmp_path):
    config = CONFIGS[name]
    encoder = T5Encoder(config, rngs=nnx.Rngs(0))
    tensors = export_weights({path: np.asarray(x) for path, x in flatten(encoder).items()}, table(config))
    strict = original(config)
    strict.load_state_dict({name: torch.tensor(x) for name, x in tie(tensors).items()}, strict=True)
    # In a folder one copy of the embedding is enough.
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    folder, report = CLASSES[config.model_type][1].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens = np.arange(20)[None]
    for model in strict, folder.eval():
        with torch.no_grad():
            expected = model(torch.tensor(tokens)).last_hidden_state.numpy()
        assert relative_error(np.asarray(features(encoder, tokens)), expected) < 1e-4


@pytest.mark.parametrize("name", ["few-buckets", "umt5"])
def test_config_survives_the_way_through_config_json(name):
    assert config_from_hf(config_to_hf(CONFIGS[name])) == CONFIGS[name]


def test_what_a_video_transformer_is_told_has_padding_in_t5_and_zeros_for_it_in_umt5():
    """As `WanPipeline._get_t5_prompt_embeds` and `CogVideoXPipeline._get_t5_prompt_embeds` make them."""
    lengths = np.array([9, 1])
    tokens = np.where(np.arange(12) < lengths[:, None], np.random.default_rng(0).integers(1, 60, (2, 12)), 0)
    for name in ("tiny", "umt5"):
        model = original(CONFIGS[name])
        encoder = ours(CONFIGS[name], model)
        mask = torch.tensor((tokens != 0).astype(np.int64)) if name == "umt5" else None
        with torch.no_grad():
            expected = model(torch.tensor(tokens), attention_mask=mask).last_hidden_state.numpy()
        if name == "umt5":
            expected[tokens == 0] = 0
        assert relative_error(np.asarray(encoder.features(jnp.asarray(tokens))), expected) < 1e-4


@pytest.mark.parametrize(
    ("field", "value"), [("model_type", "mt5"), ("feed_forward_proj", "relu"), ("feed_forward_proj", "gated-silu")]
)
def test_foreign_config_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is '{value}'"):
        config_from_hf({**config_to_hf(TINY), field: value})


@pytest.mark.parametrize("missing", ["shared.weight", "encoder.embed_tokens.weight"])
def test_either_copy_of_the_embedding_is_enough(missing, encoder):
    tensors = tensors_of(original(TINY))
    del tensors[missing]
    import_weights(untie(tensors), table(TINY), flatten(encoder))


def test_differing_copies_of_the_embedding_are_refused():
    tensors = tensors_of(original(TINY))
    tensors["shared.weight"] = tensors["shared.weight"] + 1
    with pytest.raises(WeightError, match="differ"):
        untie(tensors)


def test_padding_does_not_reach_real_positions_when_masked(encoder):
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 60, (2, 12)))
    lengths = jnp.array([5, 12])
    changed = tokens.at[0, 5:].set(7)
    np.testing.assert_array_equal(features(encoder, tokens, lengths)[0, :5], features(encoder, changed, lengths)[0, :5])


def test_fresh_weights_have_the_spread_of_transformers_initialisers(encoder):
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**config_to_hf(TINY)))
    wanted = import_weights(untie(tensors_of(model)), table(TINY), flatten(encoder))
    for path, x in flatten(encoder).items():
        # Four standard errors of the ratio of two sample deviations.
        assert x.std() == pytest.approx(np.std(wanted[path]), rel=4 / x.size**0.5), path
        if x.ndim == 3:
            assert not np.allclose(x[0], x[1]), f"{path}: all layers start alike"


def test_bfloat16_weights_give_bfloat16_features_near_the_full_ones(encoder):
    tokens = jnp.arange(20)[None]
    full = features(encoder, tokens)
    graph, state = nnx.split(encoder)
    half = features(nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)), tokens)
    assert half.dtype == jnp.bfloat16
    assert relative_error(np.asarray(half, np.float32), np.asarray(full)) < 0.05


def test_bad_bucket_count_is_refused_by_name():
    with pytest.raises(ValueError, match="relative_attention_num_buckets is 6"):
        T5Config(relative_attention_num_buckets=6)


PROMPTS = {
    "empty": "",
    "spaces": "  ",
    "short": "A red fox meets a blue dog.",
    "punctuation": 'Two friends meet, at 5 o\'clock\n\tin the café -- "naïve", they say!  ',
    "compatibility": "ﬁne ½ Ⅳ Ａ\u200b\u00a0x²",
    "other scripts": "Привет, мир; 狐と犬 👍🏽",
    # One word is one token, and the end another.
    "just fits": "word " * 225,
}


@pytest.fixture(scope="module", params=["as packed", "sentencepiece alone"])
def t5_folder(request, tmp_path_factory):
    """The released tokenizer, also as CogVideoX's repositories have it: without tokenizer.json."""
    folder = released_tokenizer("T5")
    if request.param == "as packed":
        return folder
    return shutil.copytree(folder, tmp_path_factory.mktemp("t5") / "tokenizer", ignore=lambda *_: ["tokenizer.json"])


@pytest.fixture(scope="module")
def preprocessor(t5_folder) -> Preprocessor:
    values = default()
    values.condition.text_tokens = 226
    return Preprocessor(parse(values), None, load_tokenizer(t5_folder))


def as_in_diffusers(folder, prompt: str) -> np.ndarray:
    """The call of `CogVideoXPipeline`, on the class that its model_index.json names."""
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder)
    settings = {"padding": "max_length", "max_length": 226, "truncation": True, "add_special_tokens": True}
    return tokenizer(prompt, **settings, return_tensors="np")["input_ids"][0]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_released_tokenizer_gives_the_pieces_of_sentencepiece(t5_folder, prompt):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(t5_folder / "spiece.model"))
    assert load_tokenizer(t5_folder)(prompt)["input_ids"] == [*pieces.encode(prompt), pieces.eos_id()]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_text_blocks_are_those_of_cogvideox(t5_folder, preprocessor, prompt):
    tokens, length = preprocessor.text(prompt)
    np.testing.assert_array_equal(tokens, as_in_diffusers(t5_folder, prompt))
    assert (tokens[length - 1], np.count_nonzero(tokens)) == (1, length)


def test_text_that_cogvideox_cuts_off_is_refused(t5_folder, preprocessor):
    prompt = PROMPTS["just fits"] + "word"
    fits = as_in_diffusers(t5_folder, PROMPTS["just fits"])
    np.testing.assert_array_equal(as_in_diffusers(t5_folder, prompt), fits)
    with pytest.raises(InputError, match="has 227 tokens; at most 226 are accepted"):
        preprocessor.text(prompt)


def test_features_of_released_tokens_match_transformers(t5_folder, preprocessor):
    config = dataclasses.replace(TINY, vocab_size=32128)
    model = original(config)
    prompts = [PROMPTS[name] for name in ("empty", "short", "punctuation", "just fits")]
    with torch.no_grad():
        expected = model(torch.tensor(np.stack([as_in_diffusers(t5_folder, p) for p in prompts]))).last_hidden_state
    tokens = np.stack([preprocessor.text(prompt)[0] for prompt in prompts])
    assert relative_error(np.asarray(features(ours(config, model), tokens)), expected.numpy()) < 1e-4


def test_text_blocks_are_those_of_wan():
    """Cleaned and cut into tokens as `WanPipeline` does it, by the released tokenizer of Wan2.1."""
    values = default()
    values.condition.text_tokens, values.condition.clean_text = 512, True
    tokenizer = load_tokenizer(released_tokenizer("UMT5"))
    preprocessor = Preprocessor(parse(values), None, tokenizer)
    settings = {"padding": "max_length", "max_length": 512, "truncation": True, "add_special_tokens": True}
    prompts = [prompt for name, prompt in PROMPTS.items() if name != "just fits"]
    for prompt in [*prompts, "Tom &amp;amp; Jerry", "a cafÃ© â€“ at night\r\n", "\u3000full width ！"]:
        expected = tokenizer(prompt_clean(prompt), **settings, return_tensors="np")["input_ids"][0]
        tokens, length = preprocessor.text(prompt)
        np.testing.assert_array_equal(tokens, expected)
        assert preprocessor.text_lengths([prompt]) == [length]
