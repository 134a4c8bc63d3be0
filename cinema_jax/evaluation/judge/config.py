"""The sizes of a judge."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Sizes, and what the judge expects of pictures."""

    # Channels at 1/4 and at 1/8 of a frame's size, and residual blocks at each.
    width: int = 64
    deep_width: int = 128
    blocks: int = 1
    deep_blocks: int = 2
    # Numbers in an embedding.
    embedding: int = 64
    # Kinds of background that it tells apart.
    places: int = 7
    # Height to which frames are brought, and side of the square in which a reference is shown, in pixels.
    frame_height: int = 64
    reference_size: int = 32
