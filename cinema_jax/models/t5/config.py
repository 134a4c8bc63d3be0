"""Configuration of the T5 encoder. No jax here: data worker processes import this file."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of the encoder, under the names of its `config.json`. The defaults are T5 v1.1 XXL's."""

    # Rows of the token embedding.
    vocab_size: int = 32128
    # Width of the residual stream, and of the features that come out.
    d_model: int = 4096
    # Head size. `num_heads * d_kv` need not equal `d_model`.
    d_kv: int = 64
    # Width of the gated feed-forward network.
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    # Relative distances share this many learned biases, half of them for each direction ...
    relative_attention_num_buckets: int = 32
    # ... and all distances from here on share the last one.
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    # "umt5": each layer has biases of its own for relative distances, and padding is hidden and comes out as zeros, as
    # Wan was trained with it. "t5": layers share theirs, and padding takes part, as CogVideoX was.
    model_type: Literal["t5", "umt5"] = "t5"

    def __post_init__(self):
        if self.model_type not in ("t5", "umt5"):
            raise ValueError(f'model_type is {self.model_type!r}; it must be "t5" or "umt5"')
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or buckets % 4:
            raise ValueError(f"relative_attention_num_buckets is {buckets}; it must be a positive multiple of 4")
        if distance <= buckets // 4:
            raise ValueError(f"relative_attention_max_distance is {distance}; it must exceed {buckets // 4} here")
