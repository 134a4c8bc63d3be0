"""Configuration of the CogVideoX transformer. No jax here: data worker processes import this file."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class CogVideoXConfig:
    """Sizes and options of the transformer. The defaults are CogVideoX-2b's."""

    num_layers: int = 30
    # The width is num_attention_heads x attention_head_dim.
    num_attention_heads: int = 30
    attention_head_dim: int = 64
    # Channels of the latents that come in and of the velocity that goes out.
    in_channels: int = 16
    out_channels: int = 16
    # Channels of the text tokens: 4096 for T5 XXL.
    text_embed_dim: int = 4096
    # Channels of the embedded time, from which every block derives its modulation.
    time_embed_dim: int = 512
    # Height and width of a patch, in latents. Patches span one frame.
    patch_size: int = 2
    # Number of text tokens, in every call: padding positions are tokens like the others.
    max_text_seq_length: int = 226
    # True: positions rotate queries and keys (5b). False: their sines and cosines are added to the patches (2b).
    use_rotary_positional_embeddings: bool = False
    rope_theta: float = 10000.0
    # Height and width, in latents, of the videos the network was trained on: rotary positions of other sizes are mapped
    # into theirs. `sample_frames` (pixel frames) and `temporal_compression_ratio` are only for diffusers.
    sample_height: int = 60
    sample_width: int = 90
    sample_frames: int = 49
    temporal_compression_ratio: int = 4
    # What sincos positions are divided by.
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    norm_eps: float = 1e-5
    # The time that modulates reference tokens: always 0, as they are clean, or the video's.
    entity_time: Literal["video", "zero"] = "zero"
    # What distinguishes references from each other: the time position, or also a vector that is added to their tokens.
    # A rotary position is not part of a token, so words ("the second") cannot easily refer to it.
    entity_index: Literal["position", "vector"] = "vector"
    # The sequence is padded to a multiple of this many tokens (attention block x context-parallel devices).
    sequence_multiple: int = 1
    # Rematerialisation: what each block keeps for the backward pass, which recomputes the rest. From most to least
    # memory: everything ("none" is recomputed), products with parameters ("dots"), inputs and outputs of attention
    # ("attention"), the block's input ("full"), or its input in the host's memory ("offload").
    remat: Literal["none", "dots", "attention", "full", "offload"] = "full"

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_length(self) -> Literal["fixed", "taught"]:
        """Whether training may give the network texts of another length than it knows.

        No parameter belongs to a place in the text where positions are rotary: those turn video tokens alone.
        """
        return "taught" if self.use_rotary_positional_embeddings else "fixed"

    def tokens(self, video: tuple[int, ...], entities: tuple[int, ...] | None) -> int:
        """Of text, video (F H W C) and references (K H W C), without padding."""
        count = sum(math.prod(shape[:3]) for shape in (video, entities or (0, 0, 0)))
        return self.max_text_seq_length + count // self.patch_size**2

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool | str) and value <= 0:
                raise ValueError(f"{field.name} is {value}; it must be positive")
        if self.entity_time not in ("video", "zero"):
            raise ValueError(f'entity_time is {self.entity_time!r}; it must be "video" or "zero"')
        if self.entity_index not in ("position", "vector"):
            raise ValueError(f'entity_index is {self.entity_index!r}; it must be "position" or "vector"')
        if self.use_rotary_positional_embeddings and self.attention_head_dim % 16:
            raise ValueError(f"attention_head_dim is {self.attention_head_dim}; rotary positions want a multiple of 16")
        if not self.use_rotary_positional_embeddings and self.width % 16:
            raise ValueError(
                f"num_attention_heads x attention_head_dim is {self.width}; sincos positions want a multiple of 16"
            )
