"""What a network must be to take the place of the video transformer, the part `dit`."""

from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int


@runtime_checkable
class BackboneConfig(Protocol):
    """Its config: a frozen dataclass, in a module without jax, whose fields or properties these are.

    A run that draws a new network sets the first four, so that they fit the VAE, T5 and the config's text block.
    """

    @property
    def in_channels(self) -> int:
        """Channels of the latents that come in."""
        ...

    @property
    def out_channels(self) -> int:
        """Channels of the velocity that goes out."""
        ...

    @property
    def text_embed_dim(self) -> int:
        """Channels of the text tokens."""
        ...

    @property
    def max_text_seq_length(self) -> int:
        """Text tokens in every call; the most of them where the network fills shorter texts up."""
        ...

    @property
    def patch_size(self) -> int:
        """Height and width in latents of which a video's must be multiples."""
        ...

    @property
    def remat(self) -> Literal["none", "dots", "attention", "full", "offload"]:
        """What the backward pass computes again: see `activations.REMAT`."""
        ...

    @property
    def text_length(self) -> Literal["fixed", "taught", "filled"]:
        """Whether texts may have another length than the network knows.

        fixed: they may not; taught: `pretrain` may teach it another; filled: that too, and shorter ones are filled up.
        """
        ...

    def tokens(self, video: tuple[int, ...], entities: tuple[int, ...] | None) -> int:
        """Tokens of text, video (F H W C) and references (K H W C) together, for figures of speed."""
        ...


class Backbone(Protocol):
    """The network."""

    def __call__(
        self,
        video: Float[Array, "B F H W C"],
        text: Float[Array, "B T D"],
        entities: Float[Array, "B K H2 W2 C"],
        entity_lengths: Int[Array, "B"],
        time: Float[Array, "B"],
    ) -> Float[Array, "B F H W C"]:
        """The velocity d(video)/d(time).

        Args:
            video: noisy latents.
            text: the AlignerNet's tokens, or T5's features.
            entities: latents of the reference images; K may be 0.
            entity_lengths: how many of them are real, for each sample.
            time: from 0, the clip itself, to 1, noise.
        """
        ...
