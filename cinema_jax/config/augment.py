"""How far references are changed in training."""

from dataclasses import dataclass


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
    # Up to this share of the picture is cut off at one of its sides, as if the subject stood half out of it. In [0, 1).
    crop: float = 0.0
    # Larger pictures are first shrunk to this many pixels on the longer side: bounds the time a photograph takes.
    max_side: int = 1024

    def __post_init__(self):
        _check("min_scale", self.min_scale, 0 < self.min_scale <= 1, "above 0 and at most 1")
        _check("rotation", self.rotation, 0 <= self.rotation <= 180, "between 0 and 180 degrees")
        for field in ("brightness", "contrast", "saturation"):
            value = getattr(self, field)
            _check(field, value, 0 <= value < 1, "at least 0 and below 1")
        _check("flip", self.flip, 0 <= self.flip <= 1, "a probability between 0 and 1")
        _check("crop", self.crop, 0 <= self.crop < 1, "at least 0 and below 1")
        _check("max_side", self.max_side, self.max_side >= 16, "at least 16 pixels")

    @classmethod
    def none(cls) -> "AugmentConfig":
        """No change at all (but for `max_side`): validation and generation."""
        return cls(min_scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, flip=0.0, crop=0.0)


def _check(field: str, value: float | int, accepted: bool, expected: str) -> None:
    if not accepted:
        raise ValueError(f"AugmentConfig.{field} is {value}; it must be {expected}")
