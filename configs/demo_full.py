"""The toy of configs/demo.py trained for hours instead of minutes.

    python -m cinema_jax.train --config=configs/demo_full.py --workdir=runs/demo_full

T5 goes on learning with the transformer in `pretrain` and is frozen afterwards. Every stage may be stopped (Ctrl-C)
and goes on where it was: the same command again. The packaged demo is a shorter run of it; its card,
cinema_jax/assets/demo/README.md, says how.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """The demo with a wider transformer, more videos and more steps."""
    config = demo.get_config()
    config.data.train_videos = 8192
    dit = config.dit_model
    dit.num_layers, dit.num_attention_heads = 8, 4
    config.pretrain.trainable = ("t5/.*", "dit/.*")
    for stage, steps, rate in (("pretrain", 2400, 1e-2), ("align", 300, 1e-2), ("finetune", 900, 5e-3)):
        section = config[stage]
        section.steps, section.optimizer.learning_rate, section.optimizer.warmup_steps = steps, rate, 100
        section.ema_decay, section.log_every, section.eval_every, section.checkpoint_every = 0.998, 50, 500, 200
    return config
