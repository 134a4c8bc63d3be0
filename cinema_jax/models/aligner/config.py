"""Configuration of the AlignerNet. No jax here: data worker processes import this file."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class AlignerConfig:
    """Sizes of the aligner. The defaults are the paper's."""

    # Width of the MLLM's hidden states: 1536 for Qwen2-VL-2B, 3584 for the 7B models.
    input_dim: int
    # Width of the transformer's text tokens: 4096 for T5 XXL.
    output_dim: int
    num_layers: int = 6
    width: int = 768
    num_heads: int = 8
    # How many tokens come out: the number of text tokens that the transformer was trained with.
    num_latents: int = 226
    # Whether each token is scaled by a gate of its own in [0, 1]: for text encoders that say zero behind a text, which
    # a norm cannot say (UMT5).
    gated: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name != "gated" and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"width is {self.width}; it must be a multiple of num_heads, {self.num_heads}")
