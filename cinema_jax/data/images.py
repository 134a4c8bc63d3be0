"""A user's picture: read with every mode and trap of image files, and laid out for the video VAE."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps, UnidentifiedImageError

from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs.files import check_regular

# Of the sides of a box, on each side of it.
MARGIN = 0.05
# Below this an opacity, of 255, is noise.
FAINT = 8
# A small picture of a subject is enlarged up to this factor: beyond it a network would see blots.
MOST_ENLARGED = 3.0
WHITE = 255
# Pixels of a large picture: see `scaled`.
LARGE = 1280 * 720
# Beyond this the picture is a strip in which no network sees a subject.
MAX_ASPECT_RATIO = 20.0
# Modes that hold more than 8 bits in one channel: `convert("RGB")` would clip these, not scale them.
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# A palette's transparency stands in `info` or in the palette itself: treat every palette as if it had some.
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La", "P")
# What is decoded. Of Pillow's other formats one starts a program (PostScript starts Ghostscript, whatever the file is
# called), and hardly any is ever tried with damaged files.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
# Nor does any library of this process start Ghostscript.
EpsImagePlugin.gs_binary = False


@dataclass(frozen=True)
class Picture:
    """An image, and which part of it is meant."""

    # sRGB. Undefined where the mask is 0.
    image: UInt8[np.ndarray, "height width 3"]
    # 255 inside, 0 outside, between at soft edges. None: the whole picture.
    mask: UInt8[np.ndarray, "height width"] | None


def read_image(path: str | Path) -> Picture:
    """Reads an image file of one of `FORMATS`, upright (EXIF), as sRGB; an alpha channel becomes the mask.

    Of an animation the first frame. Raises `InputError` (one sentence) for a file that is missing, a folder, empty,
    damaged, no image, too large to be decoded safely, wholly transparent, or longer than 20 times its width.
    """
    path = Path(path)
    with fault_of(f"{path}: this {path.suffix or 'file'} image is damaged or cut short"), open_image(path) as image:
        check_size(path, image.size)
        image.load()
        return _decode(path, ImageOps.exif_transpose(image))


def picture_of(image: Image.Image, name: str) -> Picture:
    """What `read_image` makes of a file, of a picture that a program has; `name` is what messages call it."""
    if 0 in image.size:
        raise InputError(f"{name} has no pixels; it is {image.width}x{image.height}")
    check_size(name, image.size)
    with fault_of(f"{name}: this picture cannot be read"):
        image.load()
        return _decode(name, ImageOps.exif_transpose(image))


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file by its header, decoding nothing; raises `InputError` as `read_image` does."""
    path = Path(path)
    with open_image(path) as image:
        check_size(path, image.size)
        return image.size


def read_mask(path: str | Path) -> UInt8[np.ndarray, "height width"]:
    """Reads a mask: white (or opaque, where the file has transparency) is the subject, black is not.

    Raises `InputError` as `read_image` does, and for a mask without any subject.
    """
    picture = read_image(path)
    mask = picture.mask
    if mask is None:
        mask = np.asarray(Image.fromarray(picture.image).convert("L"))
    if not mask.any():
        raise InputError(f"{path}: the mask is black everywhere; the subject must be white")
    return mask


def check_aspect(name: str | Path, width: int, height: int) -> None:
    """Raises `InputError` for strips."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InputError(
            f"{name}: the image is {width}x{height}; one side may be at most {MAX_ASPECT_RATIO:.0f} times the other"
        )


Box = tuple[int, int, int, int]


def with_margin(box: Box, width: int, height: int, margin: float = MARGIN) -> Box:
    """Left, top, right and bottom moved outwards by a share of the box's sides, as far as the picture goes."""
    left, top, right, bottom = box
    x, y = round((right - left) * margin), round((bottom - top) * margin)
    return max(0, left - x), max(0, top - y), min(width, right + x), min(height, bottom + y)


def subject_box(mask: UInt8[np.ndarray, "h w"]) -> Box | None:
    """The box around a subject; None where there is none.

    What nobody sees does not widen it: cut-outs have noise of a few levels around them. A mask that is as faint as that
    everywhere is taken as it is.
    """
    seen = Image.fromarray(np.where(mask >= FAINT, mask, np.uint8(0)))
    return seen.getbbox() or Image.fromarray(mask).getbbox()


def cropped(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"] | None
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"] | None]:
    """Picture and mask within the box around the mask and its margin; without a mask, or with an empty one, all."""
    box = None if mask is None else subject_box(mask)
    if box is None:
        return image, mask
    left, top, right, bottom = with_margin(box, image.shape[1], image.shape[0])
    return image[top:bottom, left:right], mask[top:bottom, left:right]


def fitted(
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"] | None,
    height: int,
    width: int,
    enlarged: float = MOST_ENLARGED,
    level: int = WHITE,
) -> UInt8[np.ndarray, "height width 3"]:
    """The whole picture on grey of `level`, as large as fits but at most `enlarged` times its size, centred."""
    return _fit(Image.fromarray(on_grey(image, mask, level)), height, width, enlarged, level)


def letterbox(
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"] | None,
    height: int,
    width: int,
    level: int = WHITE,
) -> UInt8[np.ndarray, "height width 3"]:
    """The box around the mask, never enlarged, centred on grey of `level`; no mask: all of the picture."""
    picture = Image.fromarray(on_grey(image, mask, level))
    # What the box leaves out is grey: a subject gets as many of the few visual tokens as there are.
    return _fit(picture.crop(None if mask is None else subject_box(mask)), height, width, 1.0, level)


def _fit(
    picture: Image.Image, height: int, width: int, enlarged: float, level: int
) -> UInt8[np.ndarray, "height width 3"]:
    scale = min(enlarged, height / picture.height, width / picture.width)
    if scale != 1.0:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # `reducing_gap`: average whole blocks first, which for large photographs is several times faster.
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas = Image.new("RGB", (width, height), 3 * (level,))
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return np.asarray(canvas)


def shrunk(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int, level: int
) -> tuple[UInt8[np.ndarray, "height width 3"], Box]:
    """The whole picture, never enlarged, centred on grey of `level`, and its box; rounded as BindWeave does."""
    tall, wide = image.shape[:2]
    ratio = min(1.0, width / wide, height / tall)
    size = max(1, int(wide * ratio)), max(1, int(tall * ratio))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas = Image.new("RGB", (width, height), 3 * (level,))
    canvas.paste(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), (left, top))
    return np.asarray(canvas), (left, top, left + size[0], top + size[1])


def scaled(image: UInt8[np.ndarray, "h w 3"], small: float, large: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture with its sides times `small` or, if it has more than 1280 x 720 pixels, times `large`."""
    height, width = scaled_size(*image.shape[:2], small, large)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def scaled_size(height: int, width: int, small: float, large: float) -> tuple[int, int]:
    """The size that `scaled` gives a picture of this one."""
    scale = large if height * width > LARGE else small
    return max(1, int(height * scale)), max(1, int(width * scale))


def on_white(image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"] | None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with everything outside its mask white."""
    return on_grey(image, mask, WHITE)


def on_grey(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"] | None, level: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The same in grey of `level`: 0 is black."""
    if mask is None:
        return image
    inside = mask[..., None].astype(np.uint16)
    return ((image * inside + level * (255 - inside) + 127) // 255).astype(np.uint8)


def open_image(path: Path) -> Image.Image:
    """An image file, of which the header alone is read.

    Raises:
        InputError: it is no file with an image of one of `FORMATS`, or one that is too large.
    """
    check_regular(path, "image file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the image file is empty (0 bytes)")
    with fault_of(f"{path}: not an image that can be read; PNG, JPEG, WebP, TIFF, BMP and GIF can"):
        try:
            return Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError:
            most = f"at most {Image.MAX_IMAGE_PIXELS} pixels are read"
            raise InputError(f"{path}: the image is too large; {most}") from None
        except PermissionError:
            raise InputError(f"{path}: no permission to read this file") from None
        except UnidentifiedImageError:
            raise InputError(
                f"{path}: not an image that can be read (PNG, JPEG, WebP, TIFF, BMP and GIF can)"
            ) from None


def decode_png(data: bytes) -> np.ndarray:
    """The pixels of a PNG that this project wrote; on damaged ones raises anything."""
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        return np.array(image)


def check_size(path: str | Path, size: tuple[int, int]) -> None:
    """Raises `InputError` for pictures that are too large to be decoded safely, and for strips."""
    width, height = size
    # Pillow itself only warns between its limit and twice its limit.
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise InputError(
            f"{path}: the image is too large ({width}x{height}); at most {Image.MAX_IMAGE_PIXELS} pixels are read"
        )
    check_aspect(path, width, height)


def _decode(path: str | Path, image: Image.Image) -> Picture:
    if image.mode in DEEP_MODES:
        return Picture(_rgb(_eight_bits(path, image)), None)
    if image.mode == "F":
        raise InputError(f"{path}: floating-point images are not read; save it with 8 or 16 bits a channel")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        profile = image.info.get("icc_profile")
        rgba = image.convert("RGBA")
        mask = np.asarray(rgba.getchannel("A"))
        if not mask.any():
            raise InputError(f"{path}: the image is transparent everywhere, so it shows no subject")
        opaque = bool((mask == 255).all())
        return Picture(_rgb(_to_srgb(rgba.convert("RGB"), profile)), None if opaque else mask)
    return Picture(_rgb(_to_srgb(image, image.info.get("icc_profile"))), None)


def _eight_bits(path: str | Path, image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: grey values {values.min()}..{values.max()} do not fit 16 bits (0..65535)")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Phones write Display P3, scanners Adobe RGB or CMYK: read as sRGB their colours would be wrong."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        # A profile that does not fit its image is common and harmless: viewers ignore it as well.
        return image
    return image if converted is None else converted


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    return np.asarray(image.convert("RGB"))
