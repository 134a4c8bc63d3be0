"""Augmentation of reference pictures, against copy-paste: the model must learn who is shown, not which pixels."""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from cinema_jax.config.augment import AugmentConfig
from cinema_jax.data.example import Reference
from cinema_jax.data.images import on_white


def augment_reference(reference: Reference, rng: np.random.Generator, config: AugmentConfig) -> Reference:
    """One random variant of a reference; both of its views (VAE and MLLM) are then made from this one picture.

    Image and mask move together, premultiplied, so that nothing which the mask hides gets into the subject. What the
    picture does not cover is outside the mask; a reference without a mask gets one if some of its canvas is not
    covered, and is white there. Draws the same number of random numbers whatever the picture, so that a generator
    shared by several references stays in step.
    """
    scale = float(np.exp(rng.uniform(np.log(config.min_scale), 0.0)))
    angle = rng.uniform(-config.rotation, config.rotation)
    factors = 1.0 + rng.uniform(-1.0, 1.0, 3) * (config.brightness, config.contrast, config.saturation)
    flip = rng.uniform() < config.flip
    place = rng.uniform(size=2)
    side, cut = rng.integers(4) if config.crop else 0, rng.uniform(0, config.crop) if config.crop else 0.0

    layers = Image.fromarray(reference.image).convert("RGBA")
    if reference.mask is not None:
        layers.putalpha(Image.fromarray(reference.mask))
    layers = _cut(layers, int(side), cut)
    layers = _resized(layers, min(1.0, config.max_side / max(layers.size)))
    if flip:
        layers = layers.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layers = _moved(_coloured(layers, *factors), scale, angle, place)
    image, mask = np.asarray(layers.convert("RGB")), np.asarray(layers.getchannel("A"))
    if reference.mask is not None:
        return replace(reference, image=image, mask=mask)
    return replace(reference, image=on_white(image, mask), mask=None if (mask == 255).all() else mask)


def _cut(layers: Image.Image, side: int, share: float) -> Image.Image:
    """Without a share of it at the left, top, right or bottom; whole where nothing would be left to see."""
    box = [0, 0, *layers.size]
    box[side] += (1, 1, -1, -1)[side] * round(layers.size[side % 2] * share)
    rest = layers.crop(tuple(box))
    return rest if rest.getchannel("A").getbbox() else layers


def _resized(layers: Image.Image, factor: float) -> Image.Image:
    if factor == 1.0:
        return layers
    size = (max(1, round(layers.width * factor)), max(1, round(layers.height * factor)))
    # Premultiplied: what the mask hides must not be mixed into the subject's rim.
    return layers.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA")


def _coloured(layers: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    image, mask = layers.convert("RGB"), layers.getchannel("A")
    if brightness != 1.0:
        image = ImageEnhance.Brightness(image).enhance(brightness)
    if contrast != 1.0:
        # As ImageEnhance.Contrast, but about the mean of what is shown.
        seen = np.average(np.asarray(image.convert("L")), weights=np.asarray(mask) + 1e-6)
        image = Image.blend(Image.new("RGB", image.size, (int(seen + 0.5),) * 3), image, contrast)
    if saturation != 1.0:
        image = ImageEnhance.Color(image).enhance(saturation)
    image.putalpha(mask)
    return image


def _moved(layers: Image.Image, scale: float, angle: float, place: np.ndarray) -> Image.Image:
    """Shrunk, rotated and placed; `place` in [0, 1]^2 is where on the free part of the canvas."""
    old, layers = layers.size, _resized(layers, scale)
    if angle != 0.0:
        layers = layers.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    size = (max(old[0], layers.width), max(old[1], layers.height))
    if size == layers.size:
        return layers
    canvas = Image.new("RGBA", size)
    canvas.paste(layers, (round((size[0] - layers.width) * place[0]), round((size[1] - layers.height) * place[1])))
    return canvas
