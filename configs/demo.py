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

from cinema_jax.config import DataConfig, default
from cinema_jax.config.augment import AugmentConfig
from configs import _networks as networks

# Scenes of one, two and three subjects. Three are hardest to keep apart.
SHARES = (0.2, 0.3, 0.5)


def get_config(variant: str = "") -> ConfigDict:
    """The demo, or one of its variants."""
    if variant not in VARIANTS:
        accepted = ", ".join(name for name in VARIANTS if name)
        raise ValueError(f"configs/demo.py has no variant {variant!r}; accepted: {accepted}")
    config = demo()
    VARIANTS[variant](config)
    return config


def demo() -> ConfigDict:
    """The experiment. What is not set here has the default that docs/config.md gives."""
    config = default()
    networks.sizes(config)
    networks.stages(config)

    # What is trained, and what it starts from: the pretrained transformer, and the T5 beside it.
    config.stages = ("align", "finetune")
    config.init = "weights/demo_pretrain"
    config.weights.t5 = ""

    # Drawn clips of 9 frames of 64 x 64 pixels.
    data = config.data
    data.train_videos = 768
    data.shares = SHARES
    # As large as subjects are in the videos.
    data.reference_height = 32
    data.reference_width = 32
    # References are shown as they are. Where they are cut out of the very videos this would teach to paste them; a
    # critter's picture is drawn apart, in a pose of its own.
    data.augment.update(dataclasses.asdict(AugmentConfig.none()), max_side=80)

    # The room for texts and pictures, and how often they are left out in training, for guidance.
    condition = config.condition
    condition.text_tokens = 48
    condition.mllm_tokens = 112
    condition.answer_tokens = 48
    condition.mllm_patches = 192
    condition.mllm_max_pixels = 64 * 64
    condition.mllm_min_pixels = 64 * 64
    condition.text_dropout = 0.18
    condition.reference_dropout = 0.08
    condition.joint_dropout = 0.02

    # The times that training draws, where errors count more, and how videos are sampled.
    flow = config.flow
    flow.shift = 2.0
    flow.subject_weight = 4.0
    flow.sample_steps = 12
    flow.spacing = "cosine"
    flow.guidance_text = 2.0
    flow.guidance_reference = 4.0

    # Both stages, of 32 examples a step. They are short: what is left out improves the videos a little.
    networks.stage(config, "align", steps=200, rate=1e-2)
    config.align.sample_every = 75
    networks.stage(config, "finetune", steps=50, rate=1.5e-3, average=0.98)
    config.finetune.sample_every = 20
    # Text alone, references alone, both: three subjects keep more of themselves than with both less often.
    config.finetune.dropout = (0.1, 0.05, 0.1)
    # A quarter of a batch fits the caches of a processor: a third faster.
    config.finetune.microbatches = 4
    config.evaluate_identities = 24
    return config


def full(config: ConfigDict) -> None:
    """With as many steps as the packaged demo had."""
    config.data.train_videos = 3072
    config.align.steps = 1500
    config.align.sample_every = 0
    config.finetune.steps = 200
    config.finetune.sample_every = 0
    config.finetune.ema_decay = 0.998
    config.evaluate_identities = 64


def base() -> ConfigDict:
    """What the other variants share, and those of configs/demo_full.py: usual scenes, and references that are
    augmented."""
    config = demo()
    plain(config)
    return config


def plain(config: ConfigDict) -> None:
    """As long as `full`, on usual scenes, with references that are augmented."""
    full(config)
    config.finetune.dropout = ()
    config.data.shares = DataConfig.shares
    config.data.augment.update(dataclasses.asdict(AugmentConfig()), max_side=80)


def folder(config: ConfigDict) -> None:
    """Your own videos, from captions on."""
    _own_videos(config)
    config.stages = ("pretrain", "align", "finetune")
    # Captions of critters are all that T5 knows.
    networks.with_t5(config)
    config.pretrain.references = 0.9
    # The packaged tokenizer knows the critters' words and spells all others: room for captions of 25 words.
    config.condition.text_tokens = 96
    config.condition.mllm_tokens = 192


def folder_smoke(config: ConfigDict) -> None:
    """The same for a few steps."""
    folder(config)
    for name, steps in (("pretrain", 20), ("align", 40), ("finetune", 20)):
        section = config[name]
        section.steps = steps
        section.batch_size = 8
        section.checkpoint_every = 10
        section.microbatches = 1
        section.optimizer.warmup_steps = 5
        section.ema_decay = 0.9
    config.data.validation_videos = 8


def folder_finetune(config: ConfigDict) -> None:
    """Your own videos, from the packaged demo."""
    _own_videos(config)
    config.stages = ("finetune",)
    config.init = "packaged"
    # Nothing trains on captions, and prompts are read by the multimodal LLM: only its room grows.
    config.condition.mllm_tokens = 192


def _own_videos(config: ConfigDict) -> None:
    plain(config)
    config.data.source = "folder"
    config.data.train_videos = 0
    # Of pictures larger than the critters'.
    config.data.augment.max_side = 1024
    # Nobody says where the subjects of a video are.
    config.flow.subject_weight = 1.0


def scratch(config: ConfigDict) -> None:
    """The shipped weights."""
    plain(config)
    config.stages = ("vae", "mllm", "t5", "pretrain")
    networks.from_scratch(config)
    # What shows in the picture is what the flow sees first: see training/latent_scale.py.
    config.vae.importance = 1.0


def smoke(config: ConfigDict) -> None:
    """Every stage for a few steps."""
    plain(config)
    config.stages = ("vae", "mllm", "t5", "pretrain", "align", "finetune")
    networks.from_scratch(config)
    config.data.train_videos = 8
    config.data.validation_videos = 8
    config.data.frames = 5
    config.evaluate_identities = 4
    config.dit_model.num_layers = 2
    config.flow.sample_steps = 2
    config.mllm.image_steps = 2
    config.mllm.image_batch_size = 4
    for name in config.stages:
        section = config[name]
        section.steps = 4
        section.batch_size = 4
        section.log_every = 1
        section.checkpoint_every = 2
        section.microbatches = 1
        section.optimizer.name = "adamw"  # compiles faster


VARIANTS = {
    "": lambda config: None,
    "full": full,
    "folder": folder,
    "folder_smoke": folder_smoke,
    "folder_finetune": folder_finetune,
    "smoke": smoke,
    "scratch": scratch,
}
