"""The pictures of subjects, as whoever asks for a video has them: files, pictures of Pillow, arrays."""

import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from cinema_jax.data.example import Reference
from cinema_jax.data.images import picture_of, read_image
from cinema_jax.errors import InputError

# What stands for the picture of one subject.
PictureLike = str | os.PathLike[str] | Image.Image | np.ndarray | Reference
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+:/|data:)", re.IGNORECASE)
ACCEPTED = "a file's name, a picture of Pillow, or an array (height x width x 3, uint8)"


def reference(picture: Any, name: str, subject: str) -> Reference:
    """One picture of one subject, upright, sRGB; its transparency, if it has any, is the mask.

    Args:
        picture: a file's name, a picture of Pillow, an array (uint8, [h w 3], [h w 4] with opacity, or [h w] grey), or
            a `Reference`, which is taken as it is.
        name: what messages call the picture, where it has no file.
        subject: name of the entity, unique within a request.

    Raises:
        InputError: it is none of these, an address, or cannot be read.
    """
    if isinstance(picture, Reference):
        return picture
    if isinstance(picture, Image.Image):
        found = picture_of(picture, name)
    elif isinstance(picture, str | os.PathLike):
        file = os.fspath(picture)
        if isinstance(file, str) and _ADDRESS.match(file):
            raise InputError(f"{file[:100]}: nothing is fetched from addresses; save the picture and name its file")
        found = read_image(file)
    elif hasattr(picture, "__array__"):
        found = picture_of(_image(np.asarray(picture), name), name)
    else:
        raise InputError(f"{name} is of type {type(picture).__name__}; accepted is {ACCEPTED}")
    return Reference(found.image, found.mask, subject)


def references(pictures: Any, name: str) -> tuple[Reference, ...]:
    """The pictures of one request, one of each subject.

    Args:
        pictures: a list of what `reference` takes.
        name: what messages call the list.

    Raises:
        InputError: it is no list of pictures, or one of them cannot be read.
    """
    if is_picture(pictures):
        raise InputError(f"{name} is one picture; give a list of pictures, [picture]")
    if not isinstance(pictures, Iterable) or isinstance(pictures, dict | bytes):
        raise InputError(f"{name} is of type {type(pictures).__name__}; it must be a list of pictures")
    pictures = list(pictures)
    for i, picture in enumerate(pictures):
        if isinstance(picture, list | tuple):
            raise InputError(f"{name}[{i}] is a list; for one prompt, give a plain list of pictures")
    return tuple(reference(picture, f"{name}[{i}]", str(i)) for i, picture in enumerate(pictures))


def is_picture(value: Any) -> bool:
    """Whether a value stands for one picture, and not for a list of them."""
    return isinstance(value, str | os.PathLike | Image.Image | Reference) or hasattr(value, "__array__")


def _image(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise InputError(f"{name} is an array of {pixels.dtype}; it must be of uint8, from 0 to 255")
    if pixels.size == 0 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise InputError(
            f"{name} is an array of shape {list(pixels.shape)}; accepted is height x width x 3, or x 4 with the opacity"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
