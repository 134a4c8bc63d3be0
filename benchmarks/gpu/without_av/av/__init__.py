"""In the place of PyAV where it is not installed: what cinema_jax imports of it, and MP4 files by OpenCV.

Training on drawn clips reads no video, but writes some of its samples. These are MPEG-4 part 2, which browsers do not
play; reading is refused.
"""

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np


class FFmpegError(Exception):
    """What cannot be done."""


class InvalidDataError(FFmpegError):
    """What cannot be decoded."""


class VideoFrame:
    """A picture."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    @classmethod
    def from_ndarray(cls, pixels: np.ndarray, format: str = "rgb24") -> "VideoFrame":
        """Of RGB bytes."""
        return cls(pixels)

    def reformat(self, **_: Any) -> "VideoFrame":
        """OpenCV converts colours itself."""
        return self


class Packet:
    """Of no file."""


class VideoStream:
    """One of a file that is written."""

    def __init__(self, file: str, rate: Any):
        self.width = self.height = 0
        self.pix_fmt, self.codec_context = "", SimpleNamespace()
        self._file, self._rate, self._writer = file, float(rate), None

    def encode(self, frame: VideoFrame | None) -> tuple[()]:
        """Written at once; None ends the file."""
        import cv2

        if self._writer is None:
            kind = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._file, kind, self._rate, (self.width, self.height))
        if frame is None:
            self._writer.release()
        else:
            self._writer.write(np.ascontiguousarray(frame.pixels[..., ::-1]))
        return ()


@contextlib.contextmanager
def open(file: str, mode: str = "r", **_: Any) -> Iterator[SimpleNamespace]:
    """A file to write."""
    if mode != "w":
        raise FFmpegError(f"{file}: PyAV is not installed, and nothing else here reads videos")
    yield SimpleNamespace(add_stream=lambda codec, rate, **_: VideoStream(file, rate), mux=lambda packets: None)


error = sys.modules[__name__]
