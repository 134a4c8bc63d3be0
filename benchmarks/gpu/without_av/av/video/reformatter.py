"""See `av/__init__.py`."""

import enum


class Colorspace(enum.IntEnum):
    """Of which matrix a video's colours are."""

    ITU709 = 1


class ColorRange(enum.IntEnum):
    """Whether they use all values."""

    MPEG = 1


class Interpolation(enum.IntFlag):
    """How pictures are resized."""

    BICUBIC = 4
    AREA = 32
    ACCURATE_RND = 0x40000
    FULL_CHR_H_INT = 0x2000
    FULL_CHR_H_INP = 0x4000
