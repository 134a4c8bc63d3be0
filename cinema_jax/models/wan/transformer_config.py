"""Configuration of the Wan2.1 transformer. No jax here: data worker processes import this file."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """Sizes and options of the transformer. The defaults are Wan2.1-T2V-1.3B's."""

    num_layers: int = 30
    # The width is num_attention_heads x attention_head_dim.
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    # Channels of the latents that come in: 16, or 36 where a picture is given beside the noise (I2V).
    in_channels: int = 16
    # Channels of the velocity that goes out.
    out_channels: int = 16
    # Channels of the text tokens: 4096 for UMT5-XXL.
    text_embed_dim: int = 4096
    # Channels of the image tokens that a second cross-attention reads (I2V: 1280, CLIP's); 0: there is none.
    image_embed_dim: int = 0
    # Channels of a multimodal LLM's states, which the network projects and reads with the text (BindWeave: 3584,
    # Qwen2.5-VL-7B's); 0: it reads none.
    mllm_embed_dim: int = 0
    # Where references stand in time: after the video (Phantom), or before it (BindWeave).
    reference_times: Literal["after", "before"] = "after"
    # Sinusoids of the time.
    freq_dim: int = 256
    # Width of the feed-forward networks.
    ffn_dim: int = 8960
    # Height and width of a patch, in latents. Patches span one frame.
    patch_size: int = 2
    # Number of text tokens; those behind a text are zeros, up to this number, and are attended to. No parameter depends
    # on it.
    max_text_seq_length: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
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
    def text_length(self) -> Literal["filled"]:
        """Shorter texts are filled up with zeros, as in training; `pretrain` may teach it another length."""
        return "filled"

    def tokens(self, video: tuple[int, ...], entities: tuple[int, ...] | None) -> int:
        """Of text, video (F H W C) and references (K H W C), without padding."""
        count = sum(math.prod(shape[:3]) for shape in (video, entities or (0, 0, 0)))
        return self.max_text_seq_length + count // self.patch_size**2

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("image_embed_dim", "mllm_embed_dim") else math.ulp(0.0)
            if not isinstance(value, str) and value < least:
                raise ValueError(f"{field.name} is {value}; it must be {'positive' if least else '0 or more'}")
        if self.reference_times not in ("after", "before"):
            raise ValueError(f'reference_times is {self.reference_times!r}; it must be "after" or "before"')
        for name in ("attention_head_dim", "freq_dim"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be even")
        if self.attention_head_dim < 6:
            raise ValueError(f"attention_head_dim is {self.attention_head_dim}; rotary positions want at least 6")
