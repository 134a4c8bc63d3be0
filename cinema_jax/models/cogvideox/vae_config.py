"""Configuration of the CogVideoX VAE. No jax here: data worker processes import this file."""

import dataclasses

from cinema_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CogVideoXVAEConfig:
    """The shape of a VAE, under diffusers' names; the defaults are those of CogVideoX-2b's."""

    # Channels of the encoder's stages, from full resolution on; height and width halve between two of them.
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    # Residual blocks of each stage of the encoder; the decoder has one more.
    layers_per_block: int = 3
    latent_channels: int = 16
    # Frames of a latent frame: the first stages halve them too.
    temporal_compression_ratio: int = 4
    # Channel groups of every norm, each normalised over a whole chunk of frames.
    norm_num_groups: int = 32
    # Added to the variance by the encoder's residual blocks.
    norm_eps: float = 1e-6
    # Latents are multiplied by it: 1.15258426 for 2b, 0.7 for 5b.
    scaling_factor: float = 1.15258426
    # Only handed on to diffusers: pixels of the videos it was trained on.
    sample_height: int = 480
    sample_width: int = 720

    def __post_init__(self):
        for field in ("layers_per_block", "latent_channels", "norm_num_groups"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} is {getattr(self, field)}; it must be at least 1")
        stages = len(self.block_out_channels)
        accepted = [2**level for level in range(stages)]
        if self.temporal_compression_ratio not in accepted:
            raise InputError(
                f"temporal_compression_ratio is {self.temporal_compression_ratio}; with {stages} stages accepted are "
                + ", ".join(map(str, accepted))
            )
        if wrong := [channels for channels in self.block_out_channels if channels % self.norm_num_groups]:
            raise InputError(
                f"block_out_channels has {wrong[0]}, no multiple of norm_num_groups {self.norm_num_groups}"
            )

    @property
    def spatial_compression(self) -> int:
        """Pixels to a latent, along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def temporal_compression(self) -> int:
        """Frames to a latent frame, after the first."""
        return self.temporal_compression_ratio

    @property
    def frame_unit(self) -> int:
        """Clips have a multiple of so many frames, and 1 more: an even number of latent frames does not come back."""
        return 2 * self.temporal_compression_ratio

    @property
    def z_dim(self) -> int:
        """Latent channels, as other VAEs call them."""
        return self.latent_channels
