"""The paper's ablations at toy size, and two choices beyond it, each as one short run on shared pretrained weights:

    python -m cinema_jax.train --config=configs/demo_ablation.py:full --workdir=runs/full
    python -m cinema_jax.evaluate --checkpoint=runs/full

All variants start from the same VAE, T5, multimodal LLM and pretrained transformer (`weights/demo_pretrain`, see
configs/demo.py), and share steps, batches and order of data; `--config.seed=1` is another order, noise and start.

    full             the method
    t5               T5 reads the prompt, in place of multimodal LLM and AlignerNet; references are entity tokens only
    no_entities      references reach the transformer only through the multimodal LLM
    random_aligner   finetune starts from a random AlignerNet: no align stage
    entity_time      the reference tokens are modulated by the video's time, not by time 0
    augment          references are rotated, scaled and recoloured anew each time

The last two again as short pretrainings from random weights, so that the transformer has not already been trained with
either choice: single frames and plots ("the first chases the second"), which do not mention looks.
`benchmarks/references.py` measures how well the references are read.

    pretrain, pretrain_entity_time, pretrain_augment
"""

from ml_collections import ConfigDict

from configs import _networks as networks
from configs import demo

VARIANTS = (
    "full",
    "t5",
    "no_entities",
    "random_aligner",
    "entity_time",
    "augment",
    "pretrain",
    "pretrain_entity_time",
    "pretrain_augment",
)


def get_config(variant: str = "full") -> ConfigDict:
    """One variant."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/demo_ablation.py has no variant {variant!r}; accepted: {', '.join(VARIANTS)}")
    config = demo.get_config("full")
    if variant == "t5":
        config.condition.conditioner, config.finetune.trainable = "t5", ("dit/.*",)
    elif variant == "no_entities":
        config.condition.entities = False
    elif variant == "random_aligner":
        config.condition.aligner_init = "random"
    elif variant.endswith("entity_time"):
        config.dit_model.entity_time = "video"
    elif variant.endswith("augment"):
        config.data.augment = demo.base().data.augment
    if variant in ("t5", "random_aligner"):
        config.stages = ("finetune",)
    if variant.startswith("pretrain"):
        config.stages, config.init, config.weights.t5 = ("pretrain",), "", "packaged"
        config.data.train_videos, config.data.frames = 4096, 1
        networks.stage(config, "pretrain", steps=240, rate=1e-2)
        config.pretrain.plots = config.pretrain.references = 1.0
    return config
