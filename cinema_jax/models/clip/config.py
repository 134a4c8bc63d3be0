"""Configuration of the CLIP vision tower. No jax here: data worker processes import this file."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the tower, under the names of its `config.json`. The defaults are those of ViT-H/14, which Wan reads."""

    # Width of the tokens.
    hidden_size: int = 1280
    # Width of the feed-forward networks.
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    # Height and width of a picture, in pixels, and of a patch. Rows and columns that fill no patch are left out.
    image_size: int = 224
    patch_size: int = 14
    # The exact GELU, or x * sigmoid(1.702 x), as in the first CLIPs.
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and value <= 0:
                raise ValueError(f"{field.name} is {value}; it must be positive")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is {self.patch_size}; it must be at most image_size, {self.image_size}")

    @property
    def tokens(self) -> int:
        """Of a picture: one for the whole, and one of each patch."""
        return 1 + (self.image_size // self.patch_size) ** 2
