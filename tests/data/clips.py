"""Video files for tests, written with PyAV alone. Frame `i` is a grey level of its own, which tells it apart."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx", ".avi": "mpeg4", ".ts": "libx264", ".mov": "libx264"}


def grey(index: int) -> int:
    """The grey level of frame `index`: 8 apart, which no codec blurs into the next."""
    return 20 + 8 * (index % 28)


def index_of(pixels: np.ndarray) -> int:
    """Which frame of the first 28 a picture is."""
    return round((float(np.median(pixels)) - 20) / 8)


def write_clip(path: Path, frames: int = 20, fps: int = 10, size: tuple[int, int] = (48, 64), stamps=None, **options):
    """Frames of increasing grey. `stamps`: milliseconds at which each is shown; `options`: of the codec stream."""
    height, width = size
    images = [np.full((height, width, 3), grey(i), np.uint8) for i in range(frames)]
    write_images(path, images, fps, stamps, **options)


def write_images(path: Path, images: list[np.ndarray], fps: int, stamps=None, gop: int = 5, aspect=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=fps)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        stream.codec_context.gop_size = gop
        stream.bit_rate = 4_000_000
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
