"""Subjects to video on Wan2.1-T2V-1.3B, with references as Phantom has them, on your own videos.

    python -m cinema_jax.convert import --source=Wan2.1-T2V-1.3B-Diffusers --source=phantom_wan_1.3b.safetensors \\
        --output=phantom
    python -m cinema_jax.train --config=configs/wan_1_3b.py --workdir=runs/wan --config.init=phantom \\
        --config.data.path=videos

`Wan2.1-T2V-1.3B-Diffusers` is a folder as published, or a repository of the Hugging Face hub with its owner; `videos`
holds manifest.jsonl. From Phantom's weights, or RefAlign's, this goes on where they stopped. With
`--config.init=Wan2.1-T2V-1.3B-Diffusers` the transformer learns to read references from the beginning, which wants
some 10,000 steps: `--config.finetune.steps=10000`.

UMT5 reads the prompt, and no multimodal LLM takes part. References are whole pictures on white, as large as the video
and behind it in the sequence; those that are dropped leave zeros. Times are uniform, shifted by 5. The transformer
learns on single images first, then on clips of 2 and of 5 seconds. Steps, batches and learning rates are those of
comparable work; they have not been run.

81 frames of 480 x 832 are 21 latent frames, 32,760 video tokens, and 1,560 for each reference.

    mllm    CINEMA: Qwen2-VL-2B reads prompt and references (`--config.weights.mllm=Qwen2-VL-2B-Instruct`), `align`
            trains an AlignerNet with gates into UMT5's feature space, and `finetune` both it and the transformer
"""

from ml_collections import ConfigDict

from cinema_jax.config import default, to_dict
from cinema_jax.experiment.presets import PHANTOM
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.transformer_config import WanConfig

VARIANTS = ("mllm",)


def get_config(variant: str = "") -> ConfigDict:
    """Wan2.1-T2V-1.3B, with UMT5 alone or with Qwen2-VL-2B."""
    if variant not in ("", *VARIANTS):
        raise ValueError(f"configs/wan_1_3b.py has no variant {variant!r}; accepted: {', '.join(VARIANTS)}")
    config = default()
    config.stages = ("finetune",)
    config.weights.update(dict.fromkeys(config.weights, ""))
    config.precision, config.mesh.fsdp = "bfloat16", 0
    _sizes(config)
    _data(config)
    for section, changes in PHANTOM.items():
        config[section].update(changes)
    _flow(config)
    _finetune(config)
    if variant:
        _mllm(config)
    return config


def _sizes(config: ConfigDict) -> None:
    """Of the released networks, for `plan`; a run takes them from the weights."""
    config.vae_model = ConfigDict(to_dict(WanVAEConfig()))
    config.t5_model = ConfigDict(to_dict(T5Config(vocab_size=256384, model_type="umt5")))
    # Queries and keys come in blocks of this many tokens on a TPU.
    config.dit_model = ConfigDict(to_dict(WanConfig(sequence_multiple=512)))


def _data(config: ConfigDict) -> None:
    data, condition = config.data, config.condition
    data.source, data.frames, data.height, data.width, data.fps = "folder", 81, 480, 832, 16.0
    # Of references: absent ones cost nothing.
    data.buckets = tuple((81, 480, 832, references) for references in (4, 2, 1))
    data.augment.max_side, data.other_view, data.threads, data.workers = 832, 0.5, 8, 4
    condition.conditioner, condition.text_tokens, condition.clean_text = "t5", 512, True
    # As Phantom and RefAlign drop them.
    condition.text_dropout = condition.reference_dropout = condition.joint_dropout = 0.1


def _flow(config: ConfigDict) -> None:
    flow = config.flow
    flow.times, flow.stratified = "uniform", True
    flow.solver, flow.spacing, flow.sample_steps, flow.tiled_decoding = "unipc", "timesteps", 50, True


def _finetune(config: ConfigDict) -> None:
    finetune = config.finetune
    finetune.trainable, finetune.steps, finetune.batch_size = ("dit/.*",), 4_000, 64
    # Until step, with batch and learning rate: single images, then clips of 33 frames. 81 frames are the rest.
    finetune.curriculum = ((1, 500, 128, 5e-5), (33, 2_000, 64, 5e-5))
    finetune.captions, finetune.ema_decay = 0.5, 0.999
    finetune.log_every, finetune.eval_every, finetune.checkpoint_every, finetune.keep_every = 20, 1000, 100, 1_000
    optimizer = finetune.optimizer
    optimizer.learning_rate, optimizer.warmup_steps, optimizer.beta2, optimizer.weight_decay = 2e-5, 200, 0.999, 0.01
    optimizer.schedule, optimizer.final_fraction = "cosine", 0.1


def _mllm(config: ConfigDict) -> None:
    config.stages = ("align", "finetune")
    condition, align, finetune = config.condition, config.align, config.finetune
    # Zeros fill the transformer's text block, as they do behind a text of UMT5's.
    condition.conditioner, condition.template, condition.text_tokens = "mllm", "qwen", 226
    config.aligner_model.gated = True
    # 256 language tokens for each reference, of 2 x 2 patches of 14 pixels.
    condition.mllm_max_pixels, condition.mllm_min_pixels = 448 * 448, 56 * 56
    condition.mllm_patches, condition.mllm_tokens = 4 * 1024, 1536
    align.steps, align.batch_size, align.ema_decay, align.balanced = 8_000, 256, 0.999, True
    align.log_every, align.eval_every, align.checkpoint_every = 20, 1000, 500
    optimizer = align.optimizer
    optimizer.learning_rate, optimizer.warmup_steps = 1e-4, 500
    optimizer.schedule, optimizer.final_fraction = "cosine", 0.05
    finetune.trainable, finetune.optimizer.rates = ("aligner/.*", "dit/.*"), (("aligner/.*", 2.5),)
