"""The networks that configs/demo.py starts from: a multimodal LLM that knows who is who, a video transformer and T5.

    for piece in who pictures videos prompted_pictures prompted_videos more_videos captioned_videos new_t5 ordered \\
            roles more_roles crowds more_crowds demo; do
        python -m cinema_jax.train --config=configs/demo_full.py:$piece --workdir=runs/full/$piece
    done

`who` is a piece of `mllm`: the packaged language model, or another (`--config.weights.mllm=runs/scratch/parts/mllm`),
is trained further until it knows for each noun to which image it refers. The pieces after it, up to `more_crowds`, are
pieces of `pretrain`: texts and references to single frames and to videos, with T5 trained together with the
transformer. Each starts from the result of the one before. `demo` is configs/demo.py:full, which aligns and finetunes.

The captions of the first two describe all subjects, so references add little. The prompts of the others often do not,
and the transformer learns to use the references. `new_t5` takes only the transformer: its T5 starts from random
weights. Plots, in the last five, name the subjects by the order of their images: the transformer learns who plays
which role. Half of the scenes of `crowds` and `more_crowds` show three subjects, and their T5 is frozen. `more_crowds`
shows references as they are, not rotated, scaled and recoloured anew each time. Every piece may be stopped (Ctrl-C);
the same command continues it. The card of the packaged demo, cinema_jax/assets/demo/README.md, has times and figures.
"""

import dataclasses

from ml_collections import ConfigDict

from cinema_jax.config import DataConfig
from configs import _networks as networks
from configs import demo


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A piece of pretraining."""

    steps: int
    # Learning rate, and the fraction of it at the end.
    rate: float
    final: float
    scenes: int
    seed: int
    # Shares of the texts; the others are captions.
    prompts: float = 0.0
    plots: float = 0.0
    # Shift of times, and frames of a video.
    shift: float = 2.0
    frames: int = 9
    # How often references are shown, and what tells them apart.
    references: float = 0.9
    entity_index: str = "position"
    # How much of the scenes has one, two and three subjects.
    shares: tuple[float, ...] = DataConfig.shares
    # Whether references are turned, scaled and coloured anew each time.
    augment: bool = True
    # T5's learning rate in units of the transformer's; 0: it is frozen.
    t5_rate: float = 0.1
    # With "t5", T5 starts anew.
    stages: tuple[str, ...] = ("pretrain",)


_PIECES = {
    "pictures": _Piece(2200, 1e-2, 0.3, 16384, 0, shift=1.3, frames=1, t5_rate=1.0),
    "videos": _Piece(700, 8e-3, 0.1, 6144, 0, shift=1.3, t5_rate=1.0),
    "prompted_pictures": _Piece(2400, 1e-2, 0.3, 24576, 2, prompts=0.7, shift=1.3, frames=1, t5_rate=1.0),
    "prompted_videos": _Piece(2600, 8e-3, 0.1, 12288, 2, prompts=0.7, t5_rate=1.0),
    "more_videos": _Piece(1129, 8e-3, 0.83, 12288, 3, prompts=0.7, t5_rate=1.0),
    "captioned_videos": _Piece(1073, 8e-3, 0.73, 12288, 4, prompts=0.4, t5_rate=1.0),
    "new_t5": _Piece(1800, 8e-3, 0.03, 12288, 4, prompts=0.4, references=0.8, stages=("t5", "pretrain")),
    "ordered": _Piece(692, 6e-3, 0.92, 12288, 5, prompts=0.1, plots=0.4),
    "roles": _Piece(1000, 6e-3, 0.8, 12288, 5, plots=0.8, shift=4.0, references=1.0, entity_index="vector"),
    "more_roles": _Piece(
        800, 6e-3, 0.03, 12288, 6, prompts=0.1, plots=0.5, shift=3.0, references=1.0, entity_index="vector"
    ),
    "crowds": _Piece(
        1000,
        6e-3,
        0.03,
        8192,
        7,
        prompts=0.3,
        plots=0.4,
        references=1.0,
        entity_index="vector",
        shares=demo.SHARES,
        t5_rate=0.0,
    ),
    "more_crowds": _Piece(
        900,
        6e-3,
        0.03,
        8192,
        8,
        prompts=0.2,
        plots=0.6,
        shift=3.0,
        references=1.0,
        entity_index="vector",
        shares=demo.SHARES,
        augment=False,
        t5_rate=0.0,
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    """The demo, or a piece of what it starts from."""
    config, made = demo.get_config("full") if variant == "demo" else demo.base(), [*_PIECES]
    if variant == "demo":
        config.init, config.weights.mllm = f"runs/full/{made[-1]}", "runs/full/who/parts/mllm"
    elif variant == "who":
        _who_is_who(config)
    elif variant in _PIECES:
        place = made.index(variant)
        _pretrain(config, _PIECES[variant], before=f"runs/full/{made[place - 1]}" if place else "")
    else:
        raise ValueError(f"configs/demo_full.py has no variant {variant!r}; accepted: who, {', '.join(made)}, demo")
    return config


def _pretrain(config: ConfigDict, piece: _Piece, before: str) -> None:
    config.stages, config.init, config.seed = piece.stages, before, piece.seed
    if not before:
        config.weights.t5 = "packaged"
    elif "t5" in piece.stages:
        config.init, config.weights.dit = "", f"{before}/parts/dit"
    networks.stage(config, "pretrain", steps=piece.steps, rate=piece.rate, warmup=50, final=piece.final, average=0.998)
    pretrain = config.pretrain
    pretrain.log_every, pretrain.eval_every, pretrain.checkpoint_every = 25, 500, 200
    if piece.t5_rate:
        networks.with_t5(config, piece.t5_rate)
    pretrain.prompts, pretrain.plots, pretrain.references = piece.prompts, piece.plots, piece.references
    config.data.train_videos, config.data.frames = piece.scenes, piece.frames
    config.flow.shift, config.dit_model.entity_index = piece.shift, piece.entity_index
    config.data.shares = piece.shares
    if not piece.augment:
        config.data.augment = demo.demo().data.augment


def _who_is_who(config: ConfigDict) -> None:
    config.stages, config.init, config.seed = ("mllm",), "", 2
    networks.stage(config, "mllm", steps=1500, rate=2e-3, warmup=50)
    mllm = config.mllm
    # The vision tower sees well enough.
    mllm.image_steps, mllm.batch_size, mllm.trainable = 0, 32, ("mllm/(?!visual).*",)
    mllm.log_every, mllm.checkpoint_every = 50, 250
