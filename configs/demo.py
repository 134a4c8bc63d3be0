"""The method at toy size, on one CPU.

    python -m cinema_jax.train --config=configs/demo.py --workdir=runs/demo

trains the AlignerNet (`align`) and references to video (`finetune`) on drawn critters. It starts, as the paper does,
from a pretrained video transformer: `weights/demo_pretrain`, which configs/demo_full.py makes. VAE and MLLM are those
that ship with the project. After two minutes WORKDIR/samples/contact_sheet.png has a first picture.

    --config=configs/demo.py:full             the same with as many steps as the packaged demo had
    --config=configs/demo.py:folder           your own videos: text to video first, then these two
    --config=configs/demo.py:folder_smoke     the same for a few steps: does my folder work?
    --config=configs/demo.py:folder_finetune  your own videos: the packaged demo, trained further by `finetune` alone
    --config=configs/demo.py:smoke            every stage, from random weights, for a few steps
    --config=configs/demo.py:scratch          makes the shipped weights: VAE, MLLM, and T5 jointly with a transformer
"""

import dataclasses

from ml_collections import ConfigDict

from cinema_jax.config import default
from cinema_jax.config.augment import AugmentConfig

_PRETRAINED = "weights/demo_pretrain"
# Scenes of one, two and three subjects. Three are hardest to keep apart.
SHARES = (0.2, 0.3, 0.5)


def get_config(variant: str = "") -> ConfigDict:
    """The demo, or one of its variants."""
    config = base()
    if variant in ("", "full"):
        without_augmentation(config)
        config.data.shares = SHARES
        if not variant:
            _short(config)
    elif variant == "scratch":
        config.stages = ("vae", "mllm", "t5", "pretrain")
        _from_scratch(config)
        # What shows in the picture is what the flow sees first: see training/latent_scale.py.
        config.vae.importance = 1.0
    elif variant == "smoke":
        config.stages = ("vae", "mllm", "t5", "pretrain", "align", "finetune")
        _from_scratch(config)
        _smoke(config)
    elif variant in ("folder", "folder_smoke"):
        _own_videos(config)
        config.stages = ("pretrain", "align", "finetune")
        # Captions of critters are all that T5 knows.
        with_t5(config)
        config.pretrain.references = 0.9
        # The packaged tokenizer knows the critters' words and spells all others: room for captions of 25 words.
        config.condition.text_tokens, config.condition.mllm_tokens = 96, 192
        if variant == "folder_smoke":
            _few_steps(config)
    elif variant == "folder_finetune":
        _own_videos(config)
        # Nothing trains on captions, and prompts are read by the multimodal LLM: only its room grows.
        config.stages, config.init, config.condition.mllm_tokens = ("finetune",), "packaged", 192
    else:
        raise ValueError(
            f"configs/demo.py has no variant {variant!r}; accepted: full, folder, folder_smoke, folder_finetune, "
            "smoke, scratch"
        )
    return config


def base() -> ConfigDict:
    """What all variants share."""
    config = default()
    _sizes(config)
    _stages(config)
    return config


def _sizes(config: ConfigDict) -> None:
    config.data.train_videos = 3072
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
    mllm.hidden_size, mllm.intermediate_size, mllm.num_hidden_layers = 192, 384, 5
    mllm.num_attention_heads, mllm.num_key_value_heads, mllm.mrope_section = 6, 2, (4, 6, 6)
    mllm.tie_word_embeddings = False
    aligner = config.aligner_model
    aligner.num_layers, aligner.width, aligner.num_heads = 3, 192, 6
    dit = config.dit_model
    dit.num_layers, dit.num_attention_heads, dit.attention_head_dim, dit.time_embed_dim = 8, 3, 64, 128
    # One token for each latent: 8 x 8 pixels. With 16 x 16 a critter would be one or two tokens wide.
    dit.patch_size = 1
    dit.use_rotary_positional_embeddings, dit.remat = True, "none"
    dit.entity_time, dit.entity_index = "zero", "vector"
    dit.sample_height, dit.sample_width, dit.sample_frames = 8, 8, 9


def _stages(config: ConfigDict) -> None:
    config.stages, config.init, config.weights.t5 = ("align", "finetune"), _PRETRAINED, ""
    condition = config.condition
    condition.text_dropout, condition.reference_dropout, condition.joint_dropout = 0.18, 0.08, 0.02
    flow = config.flow
    flow.shift, flow.subject_weight = 2.0, 4.0
    flow.sample_steps, flow.spacing = 12, "cosine"
    flow.guidance_text, flow.guidance_reference = 2.0, 4.0
    config.vae.batch_size, config.vae.kl_weight = 4, 3e-5
    config.mllm.image_steps, config.mllm.image_batch_size, config.mllm.batch_size = 3000, 32, 16
    stage(config, "vae", steps=4000, rate=4e-3, warmup=100)
    stage(config, "mllm", steps=6500, rate=3e-3, warmup=100)
    stage(config, "t5", steps=1500, rate=2e-3, warmup=50)
    stage(config, "pretrain", steps=600, rate=3e-3)
    stage(config, "align", steps=1500, rate=1e-2)
    stage(config, "finetune", steps=200, rate=1.5e-3, average=0.998)
    # A quarter of a batch fits the caches of a processor: a third faster.
    config.pretrain.microbatches = config.finetune.microbatches = 4


def stage(
    config: ConfigDict,
    name: str,
    *,
    steps: int,
    rate: float,
    warmup: int = 20,
    final: float = 0.05,
    average: float = 0.99,
) -> None:
    """Sets a stage's length, its learning rate, which rises for `warmup` steps and falls to `final` of itself, and the
    decay of its averaged weights."""
    section = config[name]
    section.steps, section.ema_decay = steps, average
    optimizer = section.optimizer
    optimizer.name, optimizer.beta1, optimizer.schedule = "muon", 0.95, "cosine"
    optimizer.learning_rate, optimizer.warmup_steps, optimizer.final_fraction = rate, warmup, final


def _from_scratch(config: ConfigDict) -> None:
    # Denoising alone is no great teacher: T5 goes on learning with the transformer, and is frozen afterwards.
    with_t5(config)
    for part in config.weights:
        config.weights[part] = ""
    config.init = ""
    # As the shipped T5 was made: beside a smaller transformer of larger patches.
    config.dit_model.num_layers, config.dit_model.patch_size = 6, 2
    config.data.train_videos = 1536
    stage(config, "pretrain", steps=1000, rate=1e-2)
    config.flow.shift, config.flow.subject_weight = 1.0, 1.0


def _own_videos(config: ConfigDict) -> None:
    config.data.source, config.data.train_videos = "folder", 0
    # Of pictures larger than the critters'.
    config.data.augment.max_side = 1024
    # Nobody says where the subjects of a video are.
    config.flow.subject_weight = 1.0


def _short(config: ConfigDict) -> None:
    """Minutes: what is left out improves the videos a little."""
    config.data.train_videos, config.evaluate_identities = 768, 24
    config.align.steps, config.align.sample_every = 200, 75
    config.finetune.steps, config.finetune.sample_every = 50, 20
    config.finetune.ema_decay = 0.98


def _few_steps(config: ConfigDict) -> None:
    for name, steps in (("pretrain", 20), ("align", 40), ("finetune", 20)):
        section = config[name]
        section.steps, section.batch_size, section.checkpoint_every = steps, 8, 10
        section.microbatches = 1
        section.optimizer.warmup_steps, section.ema_decay = 5, 0.9
    config.data.validation_videos = 8


def with_t5(config: ConfigDict, rate: float = 0.1) -> None:
    """T5 learns in `pretrain` too, at so much of the transformer's learning rate."""
    config.pretrain.trainable = ("t5/.*", "dit/.*")
    # Nothing scales the logits of T5's attention. At the transformer's rate they soon grow so large that it ignores the
    # order of words.
    config.pretrain.optimizer.rates = (("t5/(?!relative).*", rate),)


def without_augmentation(config: ConfigDict) -> None:
    """References are shown as they are. Where they are cut out of the very videos this would teach to paste them; a
    critter's picture is drawn apart, in a pose of its own."""
    size = config.data.augment.max_side
    config.data.augment.update(dataclasses.asdict(AugmentConfig.none()), max_side=size)


def _smoke(config: ConfigDict) -> None:
    config.data.train_videos = config.data.validation_videos = 8
    config.data.frames = 5
    config.evaluate_identities = 4
    config.dit_model.num_layers = 2
    config.flow.sample_steps = 2
    config.mllm.image_steps, config.mllm.image_batch_size = 2, 4
    for name in config.stages:
        section = config[name]
        section.steps, section.batch_size, section.log_every, section.checkpoint_every = 4, 4, 1, 2
        section.microbatches = 1
        section.optimizer.name = "adamw"  # compiles faster
