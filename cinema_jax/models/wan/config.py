"""Configuration of the Wan VAE. No jax here: data worker processes import this file."""

import dataclasses

_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """The shape of a VAE; the defaults are the released Wan2.1 VAE."""

    base_dim: int = 96  # channels at full resolution, in the encoder
    decoder_base_dim: int | None = None  # the same in the decoder; None: as in the encoder
    z_dim: int = 16  # latent channels
    dim_mult: tuple[int, ...] = (
        1,
        2,
        4,
        4,
    )  # channels of each stage in units of base_dim; height and width halve between
    num_res_blocks: int = 2  # residual blocks in each stage of the encoder; the decoder has one more
    attn_scales: tuple[float, ...] = ()  # scales (1, 1/2, ...) at which the encoder attends after each residual block
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # whether the frames halve too, between each two stages
    latents_mean: tuple[float, ...] = _MEAN  # of each latent channel, over training data
    latents_std: tuple[float, ...] = _STD  # likewise

    def __post_init__(self):
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample={self.temporal_downsample} must have {len(self.dim_mult) - 1} entries, "
                f"one less than dim_mult={self.dim_mult}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, z_dim={self.z_dim} needs as many")

    @property
    def spatial_compression(self) -> int:
        """Pixels to a latent, along height and width."""
        return 2 ** len(self.temporal_downsample)

    @property
    def temporal_compression(self) -> int:
        """Frames to a latent frame, after the first."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def frame_unit(self) -> int:
        """Clips have a multiple of so many frames, and 1 more."""
        return self.temporal_compression
