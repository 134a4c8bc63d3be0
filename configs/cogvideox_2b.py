"""CINEMA on CogVideoX-2b: the AlignerNet first, then AlignerNet and transformer together, on your own videos.

    python -m cinema_jax.train --config=configs/cogvideox_2b.py --workdir=runs/cinema_2b \\
        --config.init=CogVideoX-2b --config.weights.mllm=Qwen2-VL-2B-Instruct --config.data.path=videos

`CogVideoX-2b` and `Qwen2-VL-2B-Instruct` are folders as published (safetensors), or repositories of the Hugging Face
hub with their owners (`zai-org/CogVideoX-2b`); `videos` holds manifest.jsonl. Both as one checkpoint, in Orbax' layout:
`python -m cinema_jax.convert import --source=CogVideoX-2b --source=Qwen2-VL-2B-Instruct --output=checkpoint`, then
`--config.init=checkpoint` alone.

`align` trains the AlignerNet to map Qwen2-VL's states of prompt and references into T5's feature space. Continue with
`finetune` when `eval_cosine_real` is above 0.8 and `eval_flow_ratio` below 1.1, as in the demo. `finetune` learns
references as visual entity tokens, by the flow loss, from what the transformer already knows (v on its noise schedule,
read as a velocity). Steps, batches and learning rates are those of comparable work; they have not been run.

49 frames of 480 x 720 are 13 latent frames, 17,550 video tokens and 1,350 for each reference. 45 frames would be 12
latent frames, which CogVideoX' VAE decodes to 48: that is refused.
"""

from ml_collections import ConfigDict

from cinema_jax.config import default, to_dict
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig


def get_config() -> ConfigDict:
    """CogVideoX-2b with Qwen2-VL-2B."""
    config = default()
    config.stages = ("align", "finetune")
    config.weights.update(dict.fromkeys(config.weights, ""))
    config.precision, config.mesh.fsdp = "bfloat16", 0
    _sizes(config)
    _data(config)
    _flow(config)
    _stages(config)
    return config


def _sizes(config: ConfigDict) -> None:
    """Of the released networks, for `plan`; a run takes them from the weights. The default MLLM is Qwen2-VL-2B."""
    config.vae_model = ConfigDict(to_dict(CogVideoXVAEConfig()))
    # Queries and keys come in blocks of this many tokens on a TPU.
    config.dit_model.sequence_multiple = 512


def _data(config: ConfigDict) -> None:
    data, condition = config.data, config.condition
    data.source, data.frames, data.height, data.width, data.fps = "folder", 49, 480, 720, 8.0
    data.reference_height, data.reference_width, data.augment.max_side = 480, 720, 720
    data.crop_references = True
    data.threads, data.workers = 8, 4
    condition.template, condition.text_tokens = "qwen", 226
    # 256 language tokens for each reference, of 2 x 2 patches of 14 pixels.
    condition.mllm_max_pixels, condition.mllm_min_pixels = 448 * 448, 56 * 56
    data.max_references, condition.mllm_patches, condition.mllm_tokens = 4, 4 * 1024, 1536


def _flow(config: ConfigDict) -> None:
    config.flow.prediction, config.schedule.snr_shift_scale = "v_prediction", 3.0
    # As in pretraining: layout, number and place of subjects are decided at its noisiest timesteps.
    config.flow.times, config.flow.stratified, config.flow.spacing = "schedule", True, "schedule"
    config.flow.solver, config.flow.sample_steps, config.flow.tiled_decoding = "unipc", 50, True
    config.flow.guidance_text, config.flow.guidance_reference = 6.0, 3.0


def _stages(config: ConfigDict) -> None:
    for stage, steps, batch, rate in (("align", 20_000, 256, 1e-4), ("finetune", 10_000, 64, 1e-5)):
        section = getattr(config, stage)
        section.steps, section.batch_size, section.ema_decay = steps, batch, 0.999
        section.optimizer.name, section.optimizer.learning_rate, section.optimizer.warmup_steps = "adamw", rate, 1000
        section.log_every, section.eval_every, section.checkpoint_every = 20, 1000, 500
