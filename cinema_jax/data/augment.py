"""Augmentation of reference pictures, against copy-paste: the model must learn who is shown, not which pixels."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance

from cinema_jax.data.example import Reference
from cinema_jax.data.images import on_white


@dataclass(frozen=True)
class AugmentConfig:
    """How far a reference may be changed. `AugmentConfig.none()` changes nothing."""

    # The picture is shrunk to between this fraction and all of its size and put at a random place on a white canvas
    # of its old size. In (0, 1].
    min_scale: float = 0.6
    # Rotated by up to this many degrees either way, in [0, 180]. Nothing is cut off: the canvas grows if it must.
    rotation: float = 15.0
    # Factors drawn from [1 - x, 1 + x], in [0, 1).
    brightness: float = 0.15
    contrast: float = 0.15
    saturation: float = 0.15
    # Probability of mirroring. 0 keeps lettering readable and asymmetric subjects as they are.
    flip: float = 0.0
    # Larger pictures are first shrunk to this many pixels on the longer side: bounds the time a photograph takes.
    max_side: int = 1024

    def __post_init__(self):
        _check("min_scale", self.min_scale, 0 < self.min_scale <= 1, "above 0 and at most 1")
        _check("rotation", self.rotation, 0 <= self.rotation <= 180, "between 0 and 180 degrees")
        for field in ("brightness", "contrast", "saturation"):
            value = getattr(self, field)
            _check(field, value, 0 <= value < 1, "at least 0 and below 1")
        _check("flip", self.flip, 0 <= self.flip <= 1, "a probability between 0 and 1")
        _check("max_side", self.max_side, self.max_side >= 16, "at least 16 pixels")

    @classmethod
    def none(cls) -> "AugmentConfig":
        """No change at all (but for `max_side`): validation and generation."""
        return cls(min_scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, flip=0.0)


def augment_reference(reference: Reference, rng: np.random.Generator, config: AugmentConfig) -> Reference:
    """One random variant of a reference; both of its views (VAE and MLLM) are then made from this one picture.

    Image and mask move together. What the picture does not cover is outside the mask, and white in the image too; a
    reference without a mask gets one if some of its canvas is not covered. Draws the same number of random numbers
    whatever the picture, so that a generator shared by several references stays in step.
    """
    scale = float(np.exp(rng.uniform(np.log(config.min_scale), 0.0)))
    angle = rng.uniform(-config.rotation, config.rotation)
    factors = 1.0 + rng.uniform(-1.0, 1.0, 3) * (config.brightness, config.contrast, config.saturation)
    flip = rng.uniform() < config.flip
    place = rng.uniform(size=2)

    image, mask = _shrink(reference, config.max_side)
    if flip:
        image, mask = (layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in (image, mask))
    image = _colour(image, *factors)
    image, mask = _move(image, mask, scale, angle, place)
    covered = np.asarray(mask)
    pixels = on_white(np.asarray(image), covered) if reference.mask is None else np.asarray(image)
    whole = reference.mask is None and bool((covered == 255).all())
    return replace(reference, image=pixels, mask=None if whole else covered)


def _check(field: str, value: float | int, accepted: bool, expected: str) -> None:
    if not accepted:
        raise ValueError(f"AugmentConfig.{field} is {value}; it must be {expected}")


def _shrink(reference: Reference, max_side: int) -> tuple[Image.Image, Image.Image]:
    image = Image.fromarray(reference.image)
    mask = Image.new("L", image.size, 255) if reference.mask is None else Image.fromarray(reference.mask)
    factor = max_side / max(image.size)
    return (image, mask) if factor >= 1 else (_resize(image, factor), _resize(mask, factor))


def _resize(layer: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(layer.width * factor)), max(1, round(layer.height * factor)))
    return layer.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _colour(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    for enhance, factor in (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    ):
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    return image


def _move(
    image: Image.Image, mask: Image.Image, scale: float, angle: float, place: np.ndarray
) -> tuple[Image.Image, Image.Image]:
    """Shrinks, rotates and places both layers alike; `place` in [0, 1]^2 is where on the free part of the canvas."""
    old = image.size
    if scale < 1.0:
        image, mask = _resize(image, scale), _resize(mask, scale)
    if angle != 0.0:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(255, 255, 255))
        mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=0)
    size = (max(old[0], image.width), max(old[1], image.height))
    if size == image.size:
        return image, mask
    corner = (round((size[0] - image.width) * place[0]), round((size[1] - image.height) * place[1]))
    canvas, outside = Image.new("RGB", size, (255, 255, 255)), Image.new("L", size, 0)
    canvas.paste(image, corner)
    outside.paste(mask, corner)
    return canvas, outside
