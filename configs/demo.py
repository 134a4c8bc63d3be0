"""The whole method at toy size, on one CPU.

    python -m cinema_jax.train --config=configs/demo.py --workdir=runs/demo

trains text to video (`pretrain`), the AlignerNet (`align`) and references to video (`finetune`) on drawn critters,
from the small VAE, T5 and MLLM that ship with the project.

    --config=configs/demo.py:smoke       every stage, from random weights, for a few steps
    --config=configs/demo.py:scratch     makes the shipped weights: VAE, MLLM, and T5 trained jointly with a transformer
"""

from ml_collections import ConfigDict

from cinema_jax.config import default


def get_config(variant: str = "") -> ConfigDict:
    """The demo, or one of its variants."""
    config = default()
    _sizes(config)
    _stages(config)
    if variant == "scratch":
        config.stages = ("vae", "mllm", "pretrain")
        _from_scratch(config)
        config.pretrain.steps = 1000
        # What shows in the picture is what the flow sees first: see training/latent_scale.py.
        config.vae.importance = 1.0
    elif variant == "smoke":
        config.stages = ("vae", "mllm", "pretrain", "align", "finetune")
        _from_scratch(config)
        _smoke(config)
    elif variant:
        raise ValueError(f"configs/demo.py has no variant {variant!r}; accepted: smoke, scratch")
    return config


def _sizes(config: ConfigDict) -> None:
    config.data.train_videos = 1536
    config.data.augment.max_side = 80
    # As large as subjects are in the videos.
    config.data.reference_height = config.data.reference_width = 32
    condition = config.condition
    condition.text_tokens = 48
    condition.mllm_tokens, condition.answer_tokens = 112, 48
    condition.mllm_patches = 192
    condition.mllm_max_pixels = 64 * 64
    condition.mllm_min_pixels = 64 * 64
    vae = config.vae_model
    vae.base_dim, vae.decoder_base_dim, vae.num_res_blocks = 12, 16, 1
    vae.z_dim, vae.latents_mean, vae.latents_std = 24, (0.0,) * 24, (1.0,) * 24
    t5 = config.t5_model
    t5.d_model, t5.d_kv, t5.d_ff, t5.num_layers, t5.num_heads = 128, 32, 256, 3, 4
    mllm = config.mllm_model
    mllm.vision.depth, mllm.vision.embed_dim, mllm.vision.num_heads, mllm.vision.mlp_ratio = 4, 128, 4, 3
    mllm.vision.patch_size, mllm.vision.temporal_patch_size = 8, 2
    mllm.hidden_size, mllm.intermediate_size, mllm.num_hidden_layers = 192, 384, 3
    mllm.num_attention_heads, mllm.num_key_value_heads, mllm.mrope_section = 6, 2, (4, 6, 6)
    mllm.tie_word_embeddings = False
    aligner = config.aligner_model
    aligner.num_layers, aligner.width, aligner.num_heads = 3, 192, 6
    dit = config.dit_model
    dit.num_layers, dit.num_attention_heads, dit.attention_head_dim, dit.time_embed_dim = 6, 3, 64, 128
    dit.use_rotary_positional_embeddings, dit.entity_time, dit.remat = True, "zero", "none"
    dit.sample_height, dit.sample_width, dit.sample_frames = 8, 8, 9


def _stages(config: ConfigDict) -> None:
    config.vae.steps, config.vae.batch_size, config.vae.kl_weight = 4000, 4, 3e-5
    config.vae.optimizer.learning_rate = 4e-3
    config.mllm.steps, config.mllm.image_steps = 6500, 3000
    config.mllm.batch_size, config.mllm.image_batch_size = 16, 32
    config.mllm.optimizer.learning_rate = 3e-3
    config.pretrain.steps, config.pretrain.batch_size = 600, 32
    config.pretrain.optimizer.learning_rate, config.pretrain.optimizer.warmup_steps = 1e-2, 20
    config.align.steps, config.align.batch_size = 225, 32
    config.align.optimizer.learning_rate, config.align.optimizer.warmup_steps = 1e-2, 20
    config.finetune.steps, config.finetune.batch_size = 400, 32
    config.finetune.optimizer.learning_rate, config.finetune.optimizer.warmup_steps = 5e-3, 20
    config.flow.sample_steps, config.flow.spacing = 12, "cosine"
    config.flow.guidance_text, config.flow.guidance_reference = 2.0, 3.0
    for stage in ("vae", "mllm", "pretrain", "align", "finetune"):
        section = getattr(config, stage)
        section.optimizer.name, section.optimizer.schedule = "muon", "cosine"
        section.optimizer.final_fraction = 0.05
        section.ema_decay = 0.99


def _from_scratch(config: ConfigDict) -> None:
    # A random T5 is no teacher: it learns with the transformer, and is frozen afterwards.
    config.pretrain.trainable = ("t5/.*", "dit/.*")
    for part in config.weights:
        config.weights[part] = ""


def _smoke(config: ConfigDict) -> None:
    config.data.train_videos = config.data.validation_videos = 8
    config.data.frames = 5
    config.evaluate_identities = 4
    config.dit_model.num_layers = 2
    config.flow.sample_steps = 2
    config.mllm.image_steps, config.mllm.image_batch_size = 2, 4
    for stage in config.stages:
        section = getattr(config, stage)
        section.steps, section.batch_size, section.log_every, section.checkpoint_every = 4, 4, 1, 2
        section.optimizer.name = "adamw"  # compiles faster
