"""CINEMA on CogVideoX-5b, with Qwen2-VL-7B; stages, data and expectations as in configs/cogvideox_2b.py.

    python -m cinema_jax.train --config=configs/cogvideox_5b.py --workdir=runs/cinema_5b \\
        --config.init=CogVideoX-5b --config.weights.mllm=Qwen2-VL-7B-Instruct \\
        --config.data.path=videos

Parameters, their average and both moments of AdamW are 16 bytes for each of 5.6 billion parameters, which up to 16
devices share (`mesh.fsdp`). CogVideoX-5b has its own licence. Like 2b's, this config has not been run at full size.
"""

from ml_collections import ConfigDict

from configs import cogvideox_2b


def get_config() -> ConfigDict:
    """CogVideoX-5b with Qwen2-VL-7B."""
    config = cogvideox_2b.get_config()
    config.schedule.snr_shift_scale = 1.0
    mllm = config.mllm_model
    mllm.vocab_size, mllm.hidden_size, mllm.intermediate_size = 152064, 3584, 18944
    mllm.num_attention_heads, mllm.num_key_value_heads, mllm.tie_word_embeddings = 28, 4, False
    dit = config.dit_model
    dit.num_layers, dit.num_attention_heads, dit.use_rotary_positional_embeddings = 42, 48, True
    return config
