"""The toy of configs/demo.py trained for hours instead of minutes: what the packaged demo is made of.

    python -m cinema_jax.train --config=configs/demo_full.py:pictures --workdir=runs/full/pictures
    python -m cinema_jax.train --config=configs/demo_full.py:videos --workdir=runs/full/videos \\
        --config.init=runs/full/pictures
    python -m cinema_jax.train --config=configs/demo_full.py --workdir=runs/full/demo --config.init=runs/full/videos

`pictures` and `videos` are two pieces of `pretrain`, captions and references to single frames and then to videos, in
which T5 goes on learning with the transformer; the last command aligns and finetunes. Every piece may be stopped
(Ctrl-C) and goes on where it was: the same command again. Without `--config.init` the last one starts from
`weights/demo_pretrain`, what the first two made for the packaged demo; its card, cinema_jax/assets/demo/README.md, has
the times and the figures.
"""

from ml_collections import ConfigDict

from configs import demo

_PRETRAINED = "weights/demo_pretrain"


def get_config(variant: str = "") -> ConfigDict:
    """Align and finetune, or a piece of pretraining."""
    config = demo.get_config()
    config.data.train_videos = 16384 if variant == "pictures" else 6144
    dit = config.dit_model
    # One token for each latent: 8 x 8 pixels. With 16 x 16 a critter would be one or two tokens wide.
    dit.num_layers, dit.num_attention_heads, dit.patch_size = 8, 3, 1
    config.flow.shift, config.flow.subject_weight = 1.3, 4.0
    config.condition.text_dropout = 0.2
    config.pretrain.trainable = ("t5/.*", "dit/.*")
    config.pretrain.references = 0.9
    config.weights.t5 = ""
    if variant == "pictures":
        config.stages, config.weights.t5, config.data.frames = ("pretrain",), "packaged", 1
        _stage(config, "pretrain", steps=2200, rate=1e-2, warmup=50, final=0.3)
    elif variant == "videos":
        config.stages = ("pretrain",)
        _stage(config, "pretrain", steps=700, rate=8e-3, warmup=50, final=0.1)
    elif variant:
        raise ValueError(f"configs/demo_full.py has no variant {variant!r}; accepted: pictures, videos")
    else:
        config.stages, config.init = ("align", "finetune"), _PRETRAINED
        _stage(config, "align", steps=200, rate=1e-2, warmup=20, final=0.05)
        _stage(config, "finetune", steps=350, rate=5e-3, warmup=20, final=0.05)
    return config


def _stage(config: ConfigDict, name: str, *, steps: int, rate: float, warmup: int, final: float) -> None:
    section = config[name]
    section.steps, section.log_every, section.eval_every, section.checkpoint_every = steps, 25, 400, 200
    section.ema_decay = 0.99 if name == "align" else 0.998
    section.optimizer.learning_rate, section.optimizer.warmup_steps = rate, warmup
    section.optimizer.final_fraction = final
