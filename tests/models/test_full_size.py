"""Every released checkpoint at its real size, without its weights: names, shapes and number of parameters.

Both sides are built without memory: the original class on torch's meta device, ours as abstract arrays.
"""

import json
import math

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.embeddings import PixArtAlphaTextProjection

from cinema_jax.config import parse
from cinema_jax.experiment import parts
from cinema_jax.models.wan import transformer_weights as wan_weights
from cinema_jax.weights import rules
from configs import cogvideox_2b, cogvideox_5b, wan_1_3b, wan_14b

QWEN2 = {
    "model_type": "qwen2_vl",
    "hidden_act": "silu",
    "image_token_id": 151655,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
VISION2 = {"depth": 32, "embed_dim": 1280, "in_chans": 3, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
VISION2 |= {"spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}
VISION25 = {"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
VISION25 |= {"in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112}
VISION25 |= {"fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2}


def qwen(kind, hidden, intermediate, layers, heads, kv_heads, vocabulary, tied):
    """The config.json of a released Qwen-VL."""
    newer = kind == "qwen2_5_vl"
    return QWEN2 | {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "vision_config": VISION25 | {"out_hidden_size": hidden} if newer else VISION2 | {"hidden_size": hidden},
    }


def cogvideox(layers, heads, rotary):
    """The transformer/config.json of a released CogVideoX."""
    config = {"_class_name": "CogVideoXTransformer3DModel", "num_layers": layers, "num_attention_heads": heads}
    config |= {"attention_head_dim": 64, "in_channels": 16, "out_channels": 16, "text_embed_dim": 4096}
    config |= {"time_embed_dim": 512, "max_text_seq_length": 226, "patch_size": 2, "sample_frames": 49}
    config |= {"sample_height": 60, "sample_width": 90, "use_rotary_positional_embeddings": rotary}
    return config


def wan(layers, heads, ffn, images=False):
    """The transformer/config.json of a released Wan2.1."""
    config = {"_class_name": "WanTransformer3DModel", "num_layers": layers, "num_attention_heads": heads}
    config |= {"attention_head_dim": 128, "ffn_dim": ffn, "freq_dim": 256, "text_dim": 4096, "eps": 1e-6}
    config |= {"patch_size": [1, 2, 2], "in_channels": 36 if images else 16, "out_channels": 16}
    config |= {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024}
    return config | {"image_dim": 1280 if images else None, "added_kv_proj_dim": 128 * heads if images else None}


# The config.json of BindWeave's transformer is that of I2V; what its tensors say is added when it is imported.
BINDWEAVE = wan(40, 40, 13824, images=True) | {"text_projector_dim": 3584}
T5 = {"model_type": "t5", "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64}
T5 |= {
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
}
UMT5 = T5 | {"model_type": "umt5", "vocab_size": 256384}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
CLIP |= {"num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu"}
VAE = {"_class_name": "AutoencoderKLCogVideoX", "latent_channels": 16, "scaling_factor": 1.15258426}
DIFFUSERS = {
    "CogVideoXTransformer3DModel": diffusers.CogVideoXTransformer3DModel,
    "AutoencoderKLCogVideoX": diffusers.AutoencoderKLCogVideoX,
    "AutoencoderKLWan": diffusers.AutoencoderKLWan,
    "WanTransformer3DModel": diffusers.WanTransformer3DModel,
}
TRANSFORMERS = {
    "t5": (transformers.T5Config, transformers.T5EncoderModel),
    "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
    "clip_vision_model": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
    "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
}
# The config.json, and the number of parameters.
RELEASED = {
    "CogVideoX-2b transformer": (cogvideox(30, 30, False), 1_693_783_872),
    "CogVideoX-5b transformer": (cogvideox(42, 48, True), 5_570_283_072),
    "CogVideoX VAE": (VAE, 215_583_907),
    "Wan2.1 VAE": ({"_class_name": "AutoencoderKLWan"}, 126_892_531),
    "Wan2.1-T2V-1.3B transformer": (wan(30, 12, 8960), 1_418_996_800),
    "Wan2.1-T2V-14B transformer": (wan(40, 40, 13824), 14_288_491_584),
    "Wan2.1-I2V-14B transformer": (wan(40, 40, 13824, images=True), 16_394_878_784),
    "BindWeave-Wan-14B transformer": (BINDWEAVE, 16_426_344_256),
    "T5 v1.1 XXL": (T5, 4_762_310_656),
    "UMT5-XXL": (UMT5, 5_680_910_336),
    "CLIP ViT-H/14, its vision tower": (CLIP, 630_766_080),
    "Qwen2-VL-2B": (qwen("qwen2_vl", 1536, 8960, 28, 12, 2, 151936, True), 2_208_985_600),
    "Qwen2-VL-7B": (qwen("qwen2_vl", 3584, 18944, 28, 28, 4, 152064, False), 8_291_375_616),
    "Qwen2.5-VL-3B": (qwen("qwen2_5_vl", 2048, 11008, 36, 16, 2, 151936, True), 3_754_622_976),
    "Qwen2.5-VL-7B": (qwen("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, False), 8_292_166_656),
}


def original(config):
    """The original network on the meta device."""
    with torch.device("meta"):
        if kind := DIFFUSERS.get(config.get("_class_name")):
            network = kind.from_config({name: x for name, x in config.items() if name != "text_projector_dim"})
            if width := config.get("text_projector_dim"):
                projector = PixArtAlphaTextProjection(width, config["text_dim"], act_fn="gelu_tanh")
                network.condition_embedder.text_projector = projector
            return network
        settings, kind = TRANSFORMERS[config["model_type"]]
        return kind(settings.from_dict(config))


@pytest.mark.parametrize("name", RELEASED)
def test_the_table_covers_a_released_checkpoint_exactly(name, tmp_path):
    config, parameters = RELEASED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    part = parts.identify(tmp_path)
    ours = parts.read_config(part, tmp_path)
    _, expected = parts.structure(part, ours)
    expected = {path.removeprefix(f"{part}/"): x for path, x in expected.items()}
    kind, theirs = parts.kind_of(part, ours), original(config)
    # The names of the library that is installed; zero bytes an element.
    tensors = {key: np.empty(x.shape, "V0") for key, x in theirs.state_dict().items()}
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") and part == "mllm" else set()
    arrays = rules.import_weights(
        {key: x for key, x in tensors.items() if key not in tied | {"encoder.embed_tokens.weight"}},
        kind.table(ours),
        expected,
    )
    assert arrays.keys() == expected.keys()
    # And the names that we write, which are the released ones.
    zeros = {f"{part}/{path}": np.broadcast_to(np.zeros((), np.int8), x.shape) for path, x in expected.items()}
    written = {key: np.empty(x.shape, "V0") for key, x in parts.published(part, ours, zeros).items()}
    assert len(written) == len(tensors.keys() - tied)
    again = rules.import_weights(kind.after_reading(written, ours), kind.table(ours), expected)
    assert again.keys() == expected.keys()
    count = sum(math.prod(x.shape) for x in expected.values())
    assert count == sum(x.numel() for x in theirs.parameters()) == parameters


@pytest.mark.parametrize("name", ["Wan2.1-T2V-1.3B transformer", "Wan2.1-I2V-14B transformer"])
def test_original_names_are_those_that_diffusers_converts(name):
    config = wan_weights.config_from_hf(RELEASED[name][0])
    _, shapes = parts.structure("dit", config)
    zeros = {path.removeprefix("dit/"): np.broadcast_to(np.zeros((), np.int8), x.shape) for path, x in shapes.items()}
    written = rules.publish(zeros, wan_weights.original_table(config))
    converted = convert_wan_transformer_to_diffusers(
        {key: torch.empty(x.shape, device="meta") for key, x in written.items()}
    )
    wanted = original(RELEASED[name][0]).state_dict()
    assert {key: x.shape for key, x in converted.items()} == {key: x.shape for key, x in wanted.items()}


@pytest.mark.parametrize(
    ("module", "name"),
    [(cogvideox_2b, "Qwen2-VL-2B"), (cogvideox_5b, "Qwen2-VL-7B"), (wan_1_3b, "Qwen2-VL-2B")],
)
def test_a_config_plans_with_the_language_model_that_it_names(module, name):
    values = module.get_config()
    values.data.path = "videos"
    assert name in module.__doc__
    _, shapes = parts.structure("mllm", parse(values).mllm_model)
    assert sum(math.prod(x.shape) for x in shapes.values()) == RELEASED[name][1]


@pytest.mark.parametrize(("module", "size"), [(wan_1_3b, "1.3B"), (wan_14b, "14B")])
def test_a_config_plans_with_the_networks_of_wan(module, size):
    values = module.get_config()
    values.data.path = "videos"
    config = parse(values)
    names = {"dit": f"Wan2.1-T2V-{size} transformer", "t5": "UMT5-XXL", "vae": "Wan2.1 VAE"}
    for part, name in names.items():
        _, shapes = parts.structure(part, getattr(config, f"{part}_model"))
        assert sum(math.prod(x.shape) for x in shapes.values()) == RELEASED[name][1], part
