"""Subjects to video on Wan2.1-T2V-14B; references, data and expectations as in configs/wan_1_3b.py.

    python -m cinema_jax.train --config=configs/wan_14b.py --workdir=runs/wan_14b --config.init=phantom_14b \\
        --config.data.path=videos

`phantom_14b` is an import of Phantom-Wan-14B or RefAlign-14B beside Wan2.1-T2V-14B-Diffusers, or that folder itself.
Parameters, their average and both moments of AdamW are 16 bytes for each of 14.3 billion parameters, which up to 16
devices share (`mesh.fsdp`). Like the smaller one, this config has not been run at full size.
"""

from ml_collections import ConfigDict

from configs import wan_1_3b


def get_config() -> ConfigDict:
    """Wan2.1-T2V-14B."""
    config = wan_1_3b.get_config()
    dit = config.dit_model
    dit.num_layers, dit.num_attention_heads, dit.ffn_dim = 40, 40, 13824
    config.finetune.curriculum = ((1, 500, 128, 2e-5), (33, 2_000, 64, 2e-5))
    config.finetune.optimizer.learning_rate = 1e-5
    return config
