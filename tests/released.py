"""Whole pipelines of CogVideoX and Wan as diffusers publishes them, and a Qwen2-VL, with tiny random weights."""

import json
from pathlib import Path

import sentencepiece
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from cinema_jax.diffusion.schedule import NoiseSchedule, schedule_to_hf
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer

SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
PROMPT = "a small rabbit runs over the meadow"


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A SentencePiece model in the layout of the released one."""
    folder.mkdir()
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([PROMPT, "the quick brown fox jumps over the lazy dog"] * 20),
            model_writer=file,
            vocab_size=33,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226}
    config |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def pipeline(folder: Path, rotary: bool, scheduler: str) -> CogVideoXPipeline:
    """Diffusers' pipeline (5b's kind with `rotary`, else 2b's), which saves itself in `folder / "pipeline"`."""
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=12,
        text_embed_dim=24,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=40,
        use_rotary_positional_embeddings=rotary,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, scaling_factor=0.7
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")
    )
    with torch.no_grad():
        for parameter in (*transformer.parameters(), *vae.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
    for network in (transformer, vae, t5):
        network.eval()
    schedule = NoiseSchedule(snr_shift_scale=1.0 if rotary else 3.0)
    parts = {"transformer": transformer, "vae": vae, "text_encoder": t5, "tokenizer": tokenizer(folder / "own")}
    parts["scheduler"] = SCHEDULERS[scheduler].from_config(schedule_to_hf(schedule, scheduler))
    made = CogVideoXPipeline(**parts)
    made.save_pretrained(folder / "pipeline")
    made.set_progress_bar_config(disable=True)
    return made


def wan_pipeline(folder: Path, shift: float = 3.0) -> WanPipeline:
    """Diffusers' pipeline of Wan2.1 T2V, which saves itself in `folder / "pipeline"`."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 2.0, 1.0],
    )
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    encoder = UMT5EncoderModel(UMT5Config(**sizes))
    with torch.no_grad():
        for name, parameter in (*transformer.named_parameters(), *vae.named_parameters()):
            if parameter.ndim > 1 and not name.endswith("gamma"):
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
    for network in (transformer, vae, encoder):
        network.eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    parts = {"transformer": transformer, "vae": vae, "text_encoder": encoder, "scheduler": scheduler}
    made = WanPipeline(**parts, tokenizer=tokenizer(folder / "own"))
    made.save_pretrained(folder / "pipeline")
    made.set_progress_bar_config(disable=True)
    return made


def qwen(folder: Path, width: int = 64, vocab_size: int = 120) -> None:
    """A tiny random Qwen2-VL as transformers saves it, and a tokenizer, which has more words than 120."""
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": width,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": width // 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": width, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    Qwen2VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    build_word_tokenizer(["small", "rabbit"]).save_pretrained(folder)
