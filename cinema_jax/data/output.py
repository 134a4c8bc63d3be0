"""Writing videos: MP4, GIF or PNG frames, complete or not at all."""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinema_jax.errors import InputError
from cinema_jax.inputs.files import scratch
from cinema_jax.inputs.places import check_place

ACCEPTED = "clip.mp4, clip.gif, clip.png (numbered: clip_000.png, ...) or a folder name without a suffix (000.png, ...)"
# Browsers play a GIF frame of less than 20 ms as if it lasted 100 ms.
MAX_GIF_FPS = 50
# Visually lossless for clips this short.
H264_CRF = "18"


# What people are shown is at least so large (the shorter side, in pixels) and so long (in seconds).
VISIBLE_SIDE, VISIBLE_SECONDS = 256, 4.0


def visible(
    frames: UInt8[np.ndarray, "frames height width 3"],
    fps: float | int,
    path: str | Path,
    scale: int | None = None,
    loop: int | None = None,
) -> tuple[UInt8[np.ndarray, "more taller wider 3"], int, int]:
    """The frames as they go to `path`, enlarged by a whole factor and repeated; and the factor and how often they play.

    Args:
        scale: the factor. None: a small video becomes VISIBLE_SIDE, where it is to be played (.mp4, .gif). Whole
            squares survive the halved colours of H.264, too.
        loop: how often. None: a short .mp4 plays until VISIBLE_SECONDS. A GIF starts anew by itself.
    """
    suffix = Path(path).suffix.lower()
    if scale is None:
        scale = max(1, VISIBLE_SIDE // min(frames.shape[1:3])) if suffix in (".mp4", ".gif") else 1
    if loop is None:
        loop = max(1, math.ceil(VISIBLE_SECONDS * fps / len(frames))) if suffix == ".mp4" else 1
    return np.tile(frames.repeat(scale, axis=1).repeat(scale, axis=2), (loop, 1, 1, 1)), scale, loop


def check_output(path: str | Path) -> Path:
    """Checks, before anything is computed, that `write_video` will be able to write there; returns the path.

    Missing parent folders are made by `write_video`. An existing MP4 or GIF is replaced; PNG frames are never mixed
    with older ones. Raises `InputError` for an unknown suffix, a place that cannot be written to, and frames there.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: a path has no zero bytes")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".mp4", ".gif", ".png", "") or path.name.lower() in (".mp4", ".gif", ".png"):
        raise InputError(f"{path}: cannot write '{path.suffix or path.name}'; accepted are {ACCEPTED}")
    # First, because a name that is too long cannot even be looked up.
    check_place(path, f".{path.name}.{8 * 'x'}")
    if suffix and path.is_dir():
        raise InputError(f"{path}: this is a folder; accepted are {ACCEPTED}")
    if not suffix and path.is_symlink():
        raise InputError(f"{path}: this is a symbolic link; name a new folder for the frames, not a link to one")
    if not suffix and path.exists() and not path.is_dir():
        raise InputError(f"{path}: a file of this name exists where a folder for the frames would go")
    if not suffix and path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: this folder is not empty; name a new one for the frames")
    if suffix == ".png" and (old := _numbered(path)):
        raise InputError(f"{path}: frames from an earlier run are there ({old[0].name}, ...); remove them first")
    return path


def write_video(path: str | Path, frames: UInt8[np.ndarray, "frames height width 3"], fps: float | int) -> None:
    """Writes sRGB frames by the path's suffix; the name appears only when the file is complete.

    `.mp4`: H.264 that browsers play (4:2:0; an odd height or width repeats its last row or column to become even).
    `.gif`: one palette fitted to the clip, at most 50 frames a second. `.png` or no suffix: see `check_output`, whose
    `InputError`s this raises too.
    """
    path = check_output(path)
    if len(frames) == 0 or fps <= 0:
        raise InputError(f"{path}: {len(frames)} frames at {fps} a second make no video; both must be above 0")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_numbered, "": _write_folder}[path.suffix.lower()]
    with scratch(path) as folder:
        write(path, frames, fps, folder)


def _numbered(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    pattern = re.compile(re.escape(path.stem) + r"_\d+\.png", re.IGNORECASE)
    return sorted(item for item in path.parent.iterdir() if pattern.fullmatch(item.name))


def _write_mp4(path: Path, frames: np.ndarray, fps: float | int, folder: Path) -> None:
    # Imported here: it costs whoever writes no video 0.1 s.
    import av
    from av.video.reformatter import ColorRange, Colorspace

    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    whole = folder / "video.mp4"
    # `faststart` puts the index first, so that a browser can begin before it has the whole file.
    with av.open(str(whole), "w", options={"movflags": "+faststart"}) as container:
        options = {"crf": H264_CRF, "preset": "medium"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        # Untagged, players guess the colour matrix by the size of the picture.
        context.colorspace, context.color_range = int(Colorspace.ITU709), int(ColorRange.MPEG)
        context.color_primaries, context.color_trc = 1, 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation="AREA",
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    whole.replace(path)


def _write_gif(path: Path, frames: np.ndarray, fps: float | int, folder: Path) -> None:
    if fps > MAX_GIF_FPS:
        raise InputError(f"{path}: a GIF shows at most {MAX_GIF_FPS} frames a second, not {fps:g}; write an .mp4")
    # GIF counts in hundredths of a second: round the moments, not the lengths, so that the errors do not add up.
    moments = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    palette = _palette(frames)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    whole = folder / "video.gif"
    durations = [int(length) * 10 for length in np.diff(moments)]
    images[0].save(whole, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)
    whole.replace(path)


def _palette(frames: np.ndarray) -> Image.Image:
    """256 colours for the whole clip, from a few hundred thousand of its pixels.

    On film the octree's errors are smaller than median cut's (1.5 against 2.0 grey levels), and it is much faster.
    """
    stride = max(1, int(np.sqrt(frames[..., 0].size / 400_000)))
    pixels = frames[:, ::stride, ::stride].reshape(1, -1, 3)
    return Image.fromarray(np.ascontiguousarray(pixels)).quantize(256, method=Image.Quantize.FASTOCTREE)


def _write_pngs(frames: np.ndarray, folder: Path, prefix: str) -> list[Path]:
    digits = max(3, len(str(len(frames) - 1)))
    names = [folder / f"{prefix}{i:0{digits}d}.png" for i in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(name)
    return names


def _write_numbered(path: Path, frames: np.ndarray, fps: float | int, folder: Path) -> None:
    for name in _write_pngs(frames, folder, f"{path.stem}_"):
        name.replace(path.parent / name.name)


def _write_folder(path: Path, frames: np.ndarray, fps: float | int, folder: Path) -> None:
    inner = folder / "frames"
    inner.mkdir()
    _write_pngs(frames, inner, "")
    if path.is_dir():
        path.rmdir()
    inner.replace(path)
