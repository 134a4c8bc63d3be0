"""CINEMA on CogVideoX-2b: the AlignerNet first, then AlignerNet and transformer together, on your own videos.

    python -m cinema_jax.train --config=configs/cogvideox_2b.py --workdir=runs/cinema_2b \\
        --config.init=CogVideoX-2b --config.weights.mllm=Qwen2-VL-2B-Instruct --config.data.path=videos

`CogVideoX-2b` and `Qwen2-VL-2B-Instruct` are folders as published (safetensors), or repositories of the Hugging Face
hub with their owners (`hf://zai-org/CogVideoX-2b`); `videos` holds manifest.jsonl. Both as one checkpoint, in Orbax'
layout:
`python -m cinema_jax.convert import --source=CogVideoX-2b --source=Qwen2-VL-2B-Instruct --output=checkpoint`, then
`--config.init=checkpoint` alone.

`align` trains the AlignerNet to map Qwen2-VL's states of prompt and references into T5's feature space. Continue with
`finetune` when `eval_flow_gate` is below 0.2: then less than a fifth of what a caption is worth to the transformer is
missing. `finetune` learns references as visual entity tokens, by the flow loss, from what the transformer already knows
(v on its noise schedule, read as a velocity): on single images, then on clips of 17 and of 49 frames. Steps, batches
and learning rates are those of comparable work; they have not been run. docs/recipe.md says what to look at when, and
what it costs.

49 frames of 480 x 720 are 13 latent frames, 17,550 video tokens, and 900 for each reference. 45 frames would be 12
latent frames, which CogVideoX' VAE decodes to 48: that is refused.

Ablations, each of 1,500 steps on 17 frames. `:align` trains the AlignerNet that all but two of them start from, with
`--config.weights.aligner=runs/align/parts/aligner`:

    align          the first stage alone
    control        finetune as it is, for comparison
    times          logit-normal times, which hardly touch the noisiest timesteps, in place of those of pretraining
    entity_time    reference tokens are modulated by the video's time, not by time 0
    index          reference tokens differ by their place in time alone, without a vector of their own
    no_align       the AlignerNet starts from random weights
    t5             T5 reads the prompt, in place of multimodal LLM and AlignerNet
"""

import dataclasses

from ml_collections import ConfigDict

from cinema_jax.config import default, to_dict
from cinema_jax.config.augment import AugmentConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig

VARIANTS = ("align", "control", "times", "entity_time", "index", "no_align", "t5")


def get_config(variant: str = "") -> ConfigDict:
    """CogVideoX-2b with Qwen2-VL-2B, or an ablation of it."""
    config = default()
    config.stages = ("align", "finetune")
    config.weights.update(dict.fromkeys(config.weights, ""))
    config.precision, config.mesh.fsdp = "bfloat16", 0
    _sizes(config)
    _data(config)
    _flow(config)
    _stages(config)
    if variant:
        _ablation(config, variant)
    return config


def _sizes(config: ConfigDict) -> None:
    """Of the released networks, for `plan`; a run takes them from the weights. The default MLLM is Qwen2-VL-2B."""
    config.vae_model = ConfigDict(to_dict(CogVideoXVAEConfig()))
    dit = config.dit_model
    # References are clean, and a prompt says "the second": see docs/recipe.md.
    dit.entity_time, dit.entity_index = "zero", "vector"
    # Queries and keys come in blocks of this many tokens on a TPU.
    dit.sequence_multiple = 512


def _data(config: ConfigDict) -> None:
    data, condition = config.data, config.condition
    data.source, data.frames, data.height, data.width, data.fps = "folder", 49, 480, 720, 8.0
    # Of references; they fill their place whatever their shape, and as many tokens as they need: no more are paid for.
    data.buckets = tuple((49, 480, 720, references) for references in (4, 2, 1))
    data.reference_height, data.reference_width, data.augment.max_side = 480, 480, 720
    data.crop_references, data.max_references = True, 4
    # What is cut out of the clip itself could be pasted.
    stronger = AugmentConfig(min_scale=0.4, rotation=30.0, crop=0.25, max_side=720)
    data.other_view, data.augment_same_clip = 0.5, ConfigDict(dataclasses.asdict(stronger))
    data.threads, data.workers = 8, 4
    condition.template, condition.text_tokens = "qwen", 226
    # 256 language tokens for each reference, of 2 x 2 patches of 14 pixels.
    condition.mllm_max_pixels, condition.mllm_min_pixels = 448 * 448, 56 * 56
    condition.mllm_patches, condition.mllm_tokens = 4 * 1024, 1536


def _flow(config: ConfigDict) -> None:
    config.flow.prediction, config.schedule.snr_shift_scale = "v_prediction", 3.0
    # As in pretraining: layout, number and place of subjects are decided at its noisiest timesteps.
    config.flow.times, config.flow.stratified, config.flow.spacing = "schedule", True, "schedule"
    config.flow.solver, config.flow.sample_steps, config.flow.tiled_decoding = "unipc", 50, True
    config.flow.guidance_text, config.flow.guidance_reference = 6.0, 3.0


def _stages(config: ConfigDict) -> None:
    # Steps, batch, learning rate, its warm-up and what is left of it at the end, steps between checkpoints.
    _stage(config.align, 8_000, 256, 1e-4, 500, 0.05, 500)
    # Of a caption of 40 tokens padding would else have 82 % of the loss.
    config.align.balanced = True
    _stage(config.finetune, 8_000, 64, 1e-5, 200, 0.1, 100)
    finetune = config.finetune
    # Until step, with batch and learning rate: single images, then clips of 17 frames. 49 frames are the rest.
    finetune.curriculum = ((1, 1_000, 128, 2e-5), (17, 4_000, 64, 2e-5))
    finetune.optimizer.rates = (("aligner/.*", 2.5),)
    finetune.keep_every, finetune.captions = 1_000, 0.5


def _stage(
    section: ConfigDict, steps: int, batch: int, rate: float, warmup: int, final: float, checkpoint_every: int
) -> None:
    section.steps, section.batch_size, section.ema_decay = steps, batch, 0.999
    optimizer = section.optimizer
    optimizer.name, optimizer.schedule, optimizer.learning_rate = "adamw", "cosine", rate
    optimizer.warmup_steps, optimizer.final_fraction = warmup, final
    section.log_every, section.eval_every, section.checkpoint_every = 20, 1000, checkpoint_every


def _ablation(config: ConfigDict, variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"configs/cogvideox_2b.py has no variant {variant!r}; accepted: {', '.join(VARIANTS)}")
    config.stages = ("align",) if variant == "align" else ("finetune",)
    data, finetune = config.data, config.finetune
    data.frames, data.buckets = 17, tuple((17, *sizes) for _, *sizes in data.buckets)
    finetune.steps, finetune.curriculum, finetune.keep_every = 1_500, (), 0
    if variant == "times":
        config.flow.times = "logit_normal"
    elif variant == "entity_time":
        config.dit_model.entity_time = "video"
    elif variant == "index":
        config.dit_model.entity_index = "position"
    elif variant == "no_align":
        config.condition.aligner_init = "random"
    elif variant == "t5":
        config.condition.conditioner, finetune.trainable, finetune.optimizer.rates = "t5", ("dit/.*",), ()
