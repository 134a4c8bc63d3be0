"""Contact sheets: references, real frames and generated frames side by side, for people to look at."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

GAP = 4
GROUP_GAP = 20
TEXT = 14


@dataclass(frozen=True)
class Group:
    """A few pictures under one heading."""

    # Such as "references"; shown once, over the column of groups.
    heading: str
    # Each of its own size; may be none.
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]]


@dataclass(frozen=True)
class Row:
    """Pictures that belong to one example."""

    # The same number of groups in each row of a sheet.
    groups: Sequence[Group]
    # Shown under the row, wrapped.
    caption: str = ""


def spread(frames: UInt8[np.ndarray, "frames height width 3"], count: int) -> list[UInt8[np.ndarray, "height width 3"]]:
    """`count` frames (or all, if there are fewer) from first to last at equal distances."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[i] for i in chosen]


def contact_sheet(rows: Sequence[Row], tile: int = 128) -> Image.Image:
    """One picture of all rows; group `i` of every row stands in the same column. Tiles are `tile` pixels square.

    Small pictures are enlarged by whole factors without smoothing, so that their pixels can be judged; large ones are
    reduced. Raises `ValueError` if rows differ in their number of groups.
    """
    if not rows or any(len(row.groups) != len(rows[0].groups) for row in rows):
        raise ValueError(f"rows have {[len(row.groups) for row in rows]} groups; all need the same number, at least 1")
    font = ImageFont.load_default(TEXT - 2)
    headings = [group.heading for group in rows[0].groups]
    counts = [max(len(row.groups[i].images) for row in rows) for i in range(len(headings))]
    widths = [
        max(count * (tile + GAP) - GAP, int(font.getlength(heading)) if count else 0)
        for count, heading in zip(counts, headings, strict=True)
    ]
    lefts = [GAP + sum(width + GROUP_GAP for width in widths[:i] if width > 0) for i in range(len(widths))]
    full = max(left + width for left, width in zip(lefts, widths, strict=True)) + GAP
    captions = [_wrap(row.caption, font, full - 2 * GAP) for row in rows]
    heights = [tile + GAP + len(lines) * TEXT + 2 * GAP for lines in captions]
    sheet = Image.new("RGB", (full, TEXT + 2 * GAP + sum(heights)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for left, heading, count in zip(lefts, headings, counts, strict=True):
        if count:
            draw.text((left, GAP), heading, fill=(0, 0, 0), font=font)
    top = TEXT + 2 * GAP
    for row, lines, height in zip(rows, captions, heights, strict=True):
        for left, group in zip(lefts, row.groups, strict=True):
            for i, image in enumerate(group.images):
                _paste(sheet, image, left + i * (tile + GAP), top, tile)
        for i, line in enumerate(lines):
            draw.text((GAP, top + tile + GAP + i * TEXT), line, fill=(60, 60, 60), font=font)
        top += height
    return sheet


def _wrap(caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    if not caption:
        return []
    per_character = max(1.0, font.getlength(caption) / len(caption))
    return textwrap.wrap(caption, max(8, int(width / per_character)))


def _paste(sheet: Image.Image, pixels: np.ndarray, left: int, top: int, tile: int) -> None:
    image = Image.fromarray(pixels)
    scale = tile / max(image.size)
    if scale >= 2:
        image = image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    else:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    x, y = left + (tile - image.width) // 2, top + (tile - image.height) // 2
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=(210, 210, 210))
    sheet.paste(image, (x, y))
