"""The toy of configs/demo.py trained for hours instead of minutes: what the packaged demo is made of.

    python -m cinema_jax.train --config=configs/demo_full.py:pictures --workdir=runs/full/pictures
    python -m cinema_jax.train --config=configs/demo_full.py:videos --workdir=runs/full/videos \\
        --config.init=runs/full/pictures
    python -m cinema_jax.train --config=configs/demo_full.py:prompted_pictures --workdir=runs/full/prompted_pictures \\
        --config.init=runs/full/videos
    python -m cinema_jax.train --config=configs/demo_full.py:prompted_videos --workdir=runs/full/prompted_videos \\
        --config.init=runs/full/prompted_pictures
    python -m cinema_jax.train --config=configs/demo_full.py --workdir=runs/full/demo \\
        --config.init=runs/full/prompted_videos

The first four are pieces of `pretrain`, texts and references to single frames and to videos, in which T5 goes on
learning with the transformer; the last command aligns and finetunes. The captions of the first two say what everybody
looks like, so that references add little; the prompts of the next two often do not, and the transformer learns to look.
Every piece may be stopped (Ctrl-C) and goes on where it was: the same command again. Without `--config.init` the last
one starts from `weights/demo_pretrain`, what the pieces made for the packaged demo; its card,
cinema_jax/assets/demo/README.md, has the times and the figures.
"""

from ml_collections import ConfigDict

from configs import demo

_PRETRAINED = "weights/demo_pretrain"
# Of the pieces of pretraining: steps, learning rate and its last fraction, scenes, share of prompts, shift of times.
_PIECES = {
    "pictures": (2200, 1e-2, 0.3, 16384, 0.0, 1.3),
    "videos": (700, 8e-3, 0.1, 6144, 0.0, 1.3),
    "prompted_pictures": (2400, 1e-2, 0.3, 24576, 0.7, 1.3),
    "prompted_videos": (2600, 8e-3, 0.1, 12288, 0.7, 2.0),
}


def get_config(variant: str = "") -> ConfigDict:
    """Align and finetune, or a piece of pretraining."""
    config = demo.get_config()
    dit = config.dit_model
    # One token for each latent: 8 x 8 pixels. With 16 x 16 a critter would be one or two tokens wide.
    dit.num_layers, dit.num_attention_heads, dit.patch_size = 8, 3, 1
    config.flow.shift, config.flow.subject_weight = 2.0, 4.0
    config.flow.guidance_reference = 4.0
    config.condition.text_dropout = 0.2
    config.pretrain.trainable = ("t5/.*", "dit/.*")
    config.pretrain.references = 0.9
    config.weights.t5 = ""
    if variant in _PIECES:
        steps, rate, final, config.data.train_videos, config.pretrain.prompts, config.flow.shift = _PIECES[variant]
        config.stages = ("pretrain",)
        _stage(config, "pretrain", steps=steps, rate=rate, warmup=50, final=final)
        if variant.endswith("pictures"):
            config.data.frames = 1
        if variant == "pictures":
            config.weights.t5 = "packaged"
        if variant.startswith("prompted"):
            config.seed = 2
    elif variant:
        raise ValueError(f"configs/demo_full.py has no variant {variant!r}; accepted: {', '.join(_PIECES)}")
    else:
        config.stages, config.init, config.data.train_videos = ("align", "finetune"), _PRETRAINED, 6144
        _stage(config, "align", steps=200, rate=1e-2, warmup=20, final=0.05)
        _stage(config, "finetune", steps=200, rate=1.5e-3, warmup=20, final=0.05)
    return config


def _stage(config: ConfigDict, name: str, *, steps: int, rate: float, warmup: int, final: float) -> None:
    section = config[name]
    section.steps, section.log_every, section.eval_every, section.checkpoint_every = steps, 25, 400, 200
    section.ema_decay = 0.99 if name == "align" else 0.998
    section.optimizer.learning_rate, section.optimizer.warmup_steps = rate, warmup
    section.optimizer.final_fraction = final
