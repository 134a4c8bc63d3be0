"""A video that was generated: its frames, how it is saved, and how a notebook shows it."""

import base64
import dataclasses
import html
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.output import visible, write_video


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A generated video. The last line of a notebook's cell shows it.

    Attributes:
        frames: sRGB.
        fps: frames a second.
        prompt: what it was asked to show.
        seed: of its noise.
        asked: what the user had written, where the multimodal LLM made the prompt of it.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: float
    prompt: str = ""
    seed: int = 0
    asked: str | None = None

    def save(self, path: str | Path, *, scale: int | None = None, loop: int | None = None) -> tuple[int, int]:
        """Write it: `.mp4`, `.gif`, `.png` (numbered frames), or a folder of frames for a name without a suffix.

        Args:
            path: the file or folder, complete when it appears.
            scale: how many times larger it is written. None: a small .mp4 or .gif becomes about 256 pixels large.
            loop: how many times in a row it is written. None: a short .mp4 plays for about 4 seconds.

        Returns:
            the scale and how often it plays; (1, 1): exactly what was generated.

        Raises:
            InputError: it cannot be written there; see `cinema_jax.data.output`.
        """
        shown, scale, loop = visible(self.frames, self.fps, path, scale, loop)
        write_video(path, shown, self.fps)
        return scale, loop

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"<Video: {count} frames of {width}x{height} at {self.fps:g} frames/s, seed {self.seed}>"

    def _repr_html_(self) -> str:
        """For notebooks: the video itself, which needs no file beside the notebook."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "video.mp4"
            self.save(file, loop=1)
            data = base64.b64encode(file.read_bytes()).decode()
        prompt = html.escape(self.prompt, quote=True)
        source = f"data:video/mp4;base64,{data}"
        return f'<video controls autoplay loop muted playsinline aria-label="{prompt}" src="{source}"></video>'
