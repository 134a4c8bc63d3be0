"""What configs/demo.py starts from: a video transformer and T5, pretrained for hours.

    python -m cinema_jax.train --config=configs/demo_full.py:pictures --workdir=runs/full/pictures
    python -m cinema_jax.train --config=configs/demo_full.py:videos --workdir=runs/full/videos \\
        --config.init=runs/full/pictures
    python -m cinema_jax.train --config=configs/demo_full.py:prompted_pictures --workdir=runs/full/prompted_pictures \\
        --config.init=runs/full/videos
    python -m cinema_jax.train --config=configs/demo_full.py:prompted_videos --workdir=runs/full/prompted_videos \\
        --config.init=runs/full/prompted_pictures
    python -m cinema_jax.train --config=configs/demo_full.py:more_videos --workdir=runs/full/more_videos \\
        --config.init=runs/full/prompted_videos
    python -m cinema_jax.train --config=configs/demo_full.py:captioned_videos --workdir=runs/full/captioned_videos \\
        --config.init=runs/full/more_videos
    python -m cinema_jax.train --config=configs/demo_full.py:new_t5 --workdir=runs/full/new_t5 \\
        --config.weights.dit=runs/full/captioned_videos/parts/dit
    python -m cinema_jax.train --config=configs/demo_full.py:ordered --workdir=runs/full/ordered \\
        --config.init=runs/full/new_t5
    python -m cinema_jax.train --config=configs/demo_full.py:roles --workdir=runs/full/roles \\
        --config.init=runs/full/ordered
    python -m cinema_jax.train --config=configs/demo_full.py --workdir=runs/full/demo \\
        --config.init=runs/full/roles

All but the last are pieces of `pretrain`, texts and references to single frames and to videos, in which T5 goes on
learning with the transformer; the last is configs/demo.py, which aligns and finetunes. The captions of the first two
say what everybody looks like, so that references add little; the prompts of the others often do not, and the
transformer learns to look. `new_t5` takes the transformer alone: its T5 starts from random numbers. Plots, in the last
two, call the subjects by the order of their pictures: the transformer learns who plays which role. Every piece may be
stopped (Ctrl-C) and goes on where it was: the same command again. The card of the packaged demo,
cinema_jax/assets/demo/README.md, has the times and the figures.
"""

from ml_collections import ConfigDict

from configs import demo

# Of the pieces of pretraining: steps, learning rate and its last fraction, scenes, share of prompts, share of plots,
# shift of times, seed.
_PIECES = {
    "pictures": (2200, 1e-2, 0.3, 16384, 0.0, 0.0, 1.3, 0),
    "videos": (700, 8e-3, 0.1, 6144, 0.0, 0.0, 1.3, 0),
    "prompted_pictures": (2400, 1e-2, 0.3, 24576, 0.7, 0.0, 1.3, 2),
    "prompted_videos": (2600, 8e-3, 0.1, 12288, 0.7, 0.0, 2.0, 2),
    "more_videos": (1129, 8e-3, 0.83, 12288, 0.7, 0.0, 2.0, 3),
    "captioned_videos": (1073, 8e-3, 0.73, 12288, 0.4, 0.0, 2.0, 4),
    "new_t5": (1800, 8e-3, 0.03, 12288, 0.4, 0.0, 2.0, 4),
    "ordered": (692, 6e-3, 0.92, 12288, 0.1, 0.4, 2.0, 5),
    "roles": (1000, 6e-3, 0.8, 12288, 0.0, 0.8, 4.0, 5),
}


def get_config(variant: str = "") -> ConfigDict:
    """The demo, or a piece of its pretraining."""
    config = demo.get_config()
    if not variant:
        return config
    if variant not in _PIECES:
        raise ValueError(f"configs/demo_full.py has no variant {variant!r}; accepted: {', '.join(_PIECES)}")
    steps, rate, final, config.data.train_videos, prompts, plots, config.flow.shift, config.seed = _PIECES[variant]
    config.pretrain.prompts, config.pretrain.plots = prompts, plots
    config.stages, config.init = ("pretrain",), ""
    demo.stage(config, "pretrain", steps=steps, rate=rate, warmup=50, final=final, average=0.998)
    config.pretrain.log_every, config.pretrain.eval_every, config.pretrain.checkpoint_every = 25, 500, 200
    demo.with_t5(config)
    config.pretrain.references = 0.9
    if variant.endswith("pictures"):
        config.data.frames = 1
    if variant == "pictures":
        config.weights.t5 = "packaged"
    # As the pieces were run: at first T5 learned at the transformer's rate, and only their positions told references
    # apart.
    if variant not in ("new_t5", "ordered", "roles"):
        config.pretrain.optimizer.rates = ()
    if variant != "roles":
        config.dit_model.entity_index = "position"
    if variant == "new_t5":
        config.stages, config.pretrain.references = ("t5", "pretrain"), 0.8
    if variant == "roles":
        config.pretrain.references = 1.0
    return config
