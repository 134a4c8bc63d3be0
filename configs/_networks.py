"""The small networks that ship with the project: their sizes, and the stages that make them."""

from ml_collections import ConfigDict


def sizes(config: ConfigDict) -> None:
    """Those of the packaged weights."""
    vae = config.vae_model
    vae.base_dim = 12
    vae.decoder_base_dim = 16
    vae.num_res_blocks = 1
    vae.z_dim = 24
    vae.latents_mean = (0.0,) * 24
    vae.latents_std = (1.0,) * 24
    t5 = config.t5_model
    t5.d_model = 128
    t5.d_kv = 32
    t5.d_ff = 256
    t5.num_layers = 3
    t5.num_heads = 4
    mllm = config.mllm_model
    mllm.hidden_size = 192
    mllm.intermediate_size = 384
    mllm.num_hidden_layers = 5
    mllm.num_attention_heads = 6
    mllm.num_key_value_heads = 2
    mllm.mrope_section = (4, 6, 6)
    mllm.tie_word_embeddings = False
    vision = mllm.vision
    vision.depth = 4
    vision.embed_dim = 128
    vision.num_heads = 4
    vision.mlp_ratio = 3
    vision.patch_size = 8
    vision.temporal_patch_size = 2
    aligner = config.aligner_model
    aligner.num_layers = 3
    aligner.width = 192
    aligner.num_heads = 6
    dit = config.dit_model
    dit.num_layers = 8
    dit.num_attention_heads = 3
    dit.attention_head_dim = 64
    dit.time_embed_dim = 128
    # One token for each latent: 8 x 8 pixels. With 16 x 16 a critter would be one or two tokens wide.
    dit.patch_size = 1
    dit.use_rotary_positional_embeddings = True
    dit.remat = "none"
    dit.entity_time = "zero"
    dit.entity_index = "vector"
    dit.sample_height = 8
    dit.sample_width = 8
    dit.sample_frames = 9


def stages(config: ConfigDict) -> None:
    """Those before `align` and `finetune`."""
    config.vae.batch_size = 4
    config.vae.kl_weight = 3e-5
    config.mllm.image_steps = 3000
    config.mllm.image_batch_size = 32
    config.mllm.batch_size = 16
    stage(config, "vae", steps=4000, rate=4e-3, warmup=100)
    stage(config, "mllm", steps=6500, rate=3e-3, warmup=100)
    stage(config, "t5", steps=1500, rate=2e-3, warmup=50)
    stage(config, "pretrain", steps=600, rate=3e-3)
    # A quarter of a batch fits the caches of a processor: a third faster.
    config.pretrain.microbatches = 4


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
    """A stage with Muon.

    Args:
        steps: its length.
        rate: learning rate, which rises for `warmup` steps and falls to `final` of itself.
        average: decay of the averaged weights.
    """
    section = config[name]
    section.steps = steps
    section.ema_decay = average
    optimizer = section.optimizer
    optimizer.name = "muon"
    optimizer.beta1 = 0.95
    optimizer.schedule = "cosine"
    optimizer.learning_rate = rate
    optimizer.warmup_steps = warmup
    optimizer.final_fraction = final


def with_t5(config: ConfigDict, rate: float = 0.1) -> None:
    """T5 learns in `pretrain` too, at so much of the transformer's learning rate."""
    config.pretrain.trainable = ("t5/.*", "dit/.*")
    # Nothing scales the logits of T5's attention. At the transformer's rate they soon grow so large that it ignores the
    # order of words.
    config.pretrain.optimizer.rates = (("t5/(?!relative).*", rate),)


def from_scratch(config: ConfigDict) -> None:
    """Every network from random weights."""
    # Denoising alone is no great teacher: T5 goes on learning with the transformer, and is frozen afterwards.
    with_t5(config)
    for part in config.weights:
        config.weights[part] = ""
    config.init = ""
    # As the shipped T5 was made: beside a smaller transformer of larger patches.
    config.dit_model.num_layers = 6
    config.dit_model.patch_size = 2
    config.data.train_videos = 1536
    stage(config, "pretrain", steps=1000, rate=1e-2)
    config.flow.shift = 1.0
    config.flow.subject_weight = 1.0
