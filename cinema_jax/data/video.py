"""Reading videos: any container, frame rate and rotation, sampled by presentation time. Writing is in `output.py`."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation
from jaxtyping import UInt8

from cinema_jax.data import hdr
from cinema_jax.data.images import MAX_ASPECT_RATIO
from cinema_jax.data.output import check_output, write_video
from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs.files import check_regular

__all__ = ["VideoInfo", "check_output", "each_frame", "frame_at", "probe", "read_frames", "write_video"]

# Matroska and FLV round time stamps to milliseconds: a frame that begins within this of the asked time is shown at it.
TOLERANCE = Fraction(6, 10_000)
# swscale's defaults trade colour accuracy for speed: chroma is not interpolated, and rounding is biased.
ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
# What FFmpeg calls a colour matrix that the file does not name.
UNSPECIFIED = 2
# Containers of video, as FFmpeg calls them. Its others include lists of further files (hls, dash, concat, sdp),
# drawings that other libraries interpret (svg), devices, and what is no video.
CONTAINERS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "ogg", "asf", "mxf", "nut", "gif"),
    *("yuv4mpegpipe", "h264", "hevc", "vvc", "av1", "obu", "ivf", "m4v", "mjpeg", "vc1", "dv", "apng", "avif"),
    # Pictures, which are clips of one frame: by what they hold, not by their names, which may be patterns.
    *(f"{kind}_pipe" for kind in ("png", "jpeg", "webp", "bmp", "tiff")),
)
# Nothing in a file leads to another one: only this file is opened, whatever it refers to.
_ONLY_THIS_FILE = {
    **{"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"},
    **{"enable_drefs": "0", "use_absolute_path": "0"},
}
# Of one frame; more is no video that anybody has, and each would take gigabytes.
MAX_PIXELS = 1 << 27


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds."""

    frames: int
    # Mean frame rate, frames / duration.
    fps: float
    # Seconds, up to the end of the last frame.
    duration: float
    # As shown: after rotation, with square pixels.
    height: int
    width: int


@dataclass(frozen=True)
class _Timeline:
    """Presentation times of all frames, from the packets alone."""

    # In units of the stream's time base, ascending; empty where the container has no time stamps.
    stamps: tuple[int, ...]
    # Seconds from the first frame's beginning to the last frame's end.
    duration: Fraction


def probe(path: str | Path) -> VideoInfo:
    """Frames, rate, duration and shown size of a video. Raises `InputError` if it has no frames or cannot be read."""
    with _opened(path) as (_, stream):
        first = next(_frames(stream.container, stream, None), None)
        if first is None:
            raise InputError(f"{path}: the video holds no frame that can be decoded")
        height, width = _shown_size(first[1], stream)
    timeline = _timeline_of(path)
    frames, duration = len(timeline.stamps), timeline.duration
    if frames == 0:
        with _opened(path) as (container, stream):
            times = [time for time, _ in _frames(container, stream, None)]
            frames, duration = len(times), times[-1] - times[0] + 1 / _rate(stream)
    return VideoInfo(frames, float(frames / duration), float(duration), height, width)


def read_frames(
    path: str | Path, count: int, fps: float | int, height: int, width: int, start: float | int = 0.0
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The `count` sRGB frames shown at `start`, `start + 1/fps`, ... seconds after the video's first frame.

    Each is the frame on screen at that moment, so any frame rate, constant or not, is resampled by time: frames repeat
    where the video is slower than `fps`, and are left out where it is faster. Frames are turned upright, resized with
    their aspect kept until they cover `height x width`, and cropped around the centre. Raises `InputError` if the
    video cannot be read or ends before `start + count / fps` (the last frame counts until its end).
    """
    targets = [Fraction(start) + Fraction(i) / Fraction(fps).limit_denominator(1_000_000) for i in range(count)]
    if start > 0:
        with _opened(path) as (container, stream):
            frames = _pick(path, container, stream, targets, (height, width), seek=True)
        if frames is not None:
            return np.stack(frames)
    # Some containers have no index, and some seek past the asked time: then read from the beginning.
    with _opened(path) as (container, stream):
        return np.stack(_pick(path, container, stream, targets, (height, width), seek=False))


def frame_at(path: str | Path, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Frame number `index` (from 0, in the order shown), upright, at full size with square pixels.

    Raises `InputError` if the video cannot be read or has no frame of that number.
    """
    stamps = _timeline_of(path).stamps
    if 0 < index < len(stamps):
        with _opened(path) as (container, stream):
            frame = _frame_of(container, stream, stamps[index])
            if frame is not None:
                return _whole(frame, stream)
    # No time stamps, or the seek missed: count from the beginning.
    count = 0
    with _opened(path) as (container, stream):
        for _, frame in _frames(container, stream, None):
            if count == index:
                return _whole(frame, stream)
            count += 1
    raise InputError(f"{path}: there is no frame {index}; the video has {count} frames, numbered from 0")


def each_frame(path: str | Path, longer_side: int) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """All frames in the order shown: seconds after the first one, and the frame, upright and no larger than asked.

    Raises `InputError` where the video cannot be read, also after some frames.
    """
    with _opened(path) as (container, stream):
        first = None
        for time, frame in _frames(container, stream, None):
            first = time if first is None else first
            rows, columns = _square_size(frame, stream)
            scale = min(1.0, longer_side / max(rows, columns))
            pixels = _resized(frame, stream, max(1, round(rows * scale)), max(1, round(columns * scale)))
            yield float(time - first), np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple]:
    """The container and its first video stream; every decoding error inside becomes one sentence."""
    path = Path(path)
    check_regular(path, "video file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the video file is empty (0 bytes)")
    # Absolute: "concat:a" would be no file to FFmpeg. Titles and the like may be of any encoding; nobody reads them.
    with (
        fault_of(f"{path}: this video cannot be decoded"),
        av.open(
            os.path.abspath(path), mode="r", container_options=_ONLY_THIS_FILE, metadata_errors="replace"
        ) as container,
    ):
        # The cover of a piece of music is a stream of one picture.
        moving = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not moving:
            raise InputError(f"{path}: the file has no video stream")
        stream = moving[0]
        if stream.codec_context is None:
            raise InputError(f"{path}: this video is of a codec that FFmpeg does not have")
        # Parallelism comes from loading several examples at once; a decoder's own threads would only compete.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        _check_size(path, stream)
        yield container, stream


def _check_size(path: Path, stream: av.VideoStream) -> None:
    """Refuse frames, as they are shown, that no memory holds or that are strips."""
    height, width = stream.codec_context.height, stream.codec_context.width * (stream.sample_aspect_ratio or 1)
    if not height or not width:
        return
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: frames of {float(width):g}x{height}; at most {MAX_PIXELS} pixels are read")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        most = f"one side may be at most {MAX_ASPECT_RATIO:.0f} times the other"
        raise InputError(f"{path}: frames are shown as {float(width):g}x{height}; {most}")


def _frames(container, stream, origin: Fraction | None) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """(seconds since the video's beginning, frame) in the order shown, from where the container stands."""
    for count, (frame, cut) in enumerate(_decoded(container, stream)):
        # Raw streams carry no time stamps: count.
        time = frame.pts * frame.time_base if frame.pts is not None else count / _rate(stream)
        if origin is None:
            origin = time if cut else _origin(stream, time)
        yield time - origin, frame


def _decoded(container, stream) -> Iterator[tuple[av.VideoFrame, bool]]:
    """(frame, whether the stream was cut before its first key frame): what needs frames before the cut is left out."""
    begun = cut = False
    for packet in container.demux(stream):
        begun |= packet.is_keyframe
        cut |= not begun
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if begun:
                raise
            continue
        yield from ((frame, cut) for frame in frames if not (cut and frame.is_corrupt))


def _seek(container, stream, stamp: int) -> bool:
    """Moves to a key frame at or before the time stamp; False where the container cannot."""
    try:
        container.seek(stamp, stream=stream)
    except (av.error.FFmpegError, OSError):
        return False
    return True


def _frame_of(container, stream, stamp: int) -> av.VideoFrame | None:
    """The frame that begins exactly at the time stamp, by seeking."""
    if not _seek(container, stream, stamp):
        return None
    for _, frame in _frames(container, stream, None):
        if frame.pts is None or frame.pts >= stamp:
            return frame if frame.pts == stamp and not frame.is_corrupt else None
    return None


def _pick(
    path, container, stream, targets: list[Fraction], size: tuple[int, int], seek: bool
) -> list[np.ndarray] | None:
    """The frame on screen at each of the ascending times; None if a seek landed too late or on damaged frames."""
    # A stream that was cut does not begin where it says.
    if seek and not next(container.demux(stream)).is_keyframe:
        return None
    if seek and not _seek(container, stream, int((targets[0] + _origin(stream, Fraction(0))) / stream.time_base)):
        return None
    picked: list[np.ndarray] = []
    shown, end = None, Fraction(0)
    for time, frame in _frames(container, stream, _origin(stream, Fraction(0)) if seek else None):
        if seek and shown is None and (time > targets[0] + TOLERANCE or frame.pts is None):
            return None
        if shown is not None:
            wanted = [target for target in targets[len(picked) :] if target + TOLERANCE < time]
            if wanted and shown.is_corrupt:
                break
            # Converted at once and only when needed: decoded frames are large.
            picked += [_cover(shown, stream, *size)] * len(wanted) if wanted else []
        if len(picked) == len(targets):
            return picked
        shown, end = frame, time + _length(frame, stream)
    else:
        if shown is not None and targets[-1] < end and not shown.is_corrupt:
            return picked + [_cover(shown, stream, *size)] * (len(targets) - len(picked))
    if seek:
        return None
    if shown is not None and shown.is_corrupt:
        raise InputError(f"{path}: the frame shown at {float(targets[len(picked)]):.2f} s is damaged")
    raise InputError(_too_short(path, shown is None, end, targets))


def _too_short(path, empty: bool, end: Fraction, targets: list[Fraction]) -> str:
    if empty:
        return f"{path}: the video holds no frame that can be decoded"
    step = targets[1] - targets[0] if len(targets) > 1 else Fraction(0)
    rate = f" at {float(1 / step):g} frames a second" if step else ""
    return (
        f"{path}: the video ends at {float(end):.2f} s, but the last of {len(targets)} frames{rate} from "
        f"{float(targets[0]):g} s on would be the one shown at {float(targets[-1]):.2f} s"
    )


def _rate(stream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def _origin(stream, first: Fraction) -> Fraction:
    return stream.start_time * stream.time_base if stream.start_time is not None else first


def _length(frame: av.VideoFrame, stream) -> Fraction:
    """Seconds for which the frame is shown if nothing follows."""
    return frame.duration * frame.time_base if frame.duration else 1 / _rate(stream)


def _timeline_of(path: str | Path) -> _Timeline:
    path = Path(path)
    if not path.is_file():
        # Let the opener say what is wrong.
        with _opened(path):
            pass
    status = path.stat()
    return _timeline(str(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _timeline(path: str, modified: int, size: int) -> _Timeline:
    """Reads all packets without decoding them: milliseconds for minutes of video. Cached until the file changes."""
    with _opened(path) as (container, stream):
        packets = _from_key(packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        if not packets or any(packet.pts is None for packet in packets):
            return _Timeline((), Fraction(0))
        last = max(packets, key=lambda packet: packet.pts)
        stamps = tuple(sorted(packet.pts for packet in packets))
        length = last.duration * stream.time_base if last.duration else 1 / _rate(stream)
        return _Timeline(stamps, (stamps[-1] - stamps[0]) * stream.time_base + length)


def _from_key(packets: Iterable[av.Packet]) -> list[av.Packet]:
    """The packets without those that need frames before the first key frame, as a stream cut in its middle has some."""
    packets = list(packets)
    first = next((i for i, packet in enumerate(packets) if packet.is_keyframe), 0)
    start = packets[first].pts if first else None
    return [packet for packet in packets[first:] if start is None or packet.pts is None or packet.pts >= start]


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that make the frame upright."""
    return round(frame.rotation / 90) % 4


def _square_size(frame: av.VideoFrame, stream) -> tuple[float, float]:
    """Height and width with square pixels, before rotation."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return float(frame.height), float(frame.width * aspect)


def _shown_size(frame: av.VideoFrame, stream) -> tuple[int, int]:
    height, width = (round(side) for side in _square_size(frame, stream))
    return (width, height) if _quarter_turns(frame) % 2 else (height, width)


def _cover(frame: av.VideoFrame, stream, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Upright, resized until it covers the size, cropped around the centre."""
    turns = _quarter_turns(frame)
    need_height, need_width = (width, height) if turns % 2 else (height, width)
    full_height, full_width = _square_size(frame, stream)
    scale = max(need_height / full_height, need_width / full_width)
    rows, columns = max(need_height, round(full_height * scale)), max(need_width, round(full_width * scale))
    pixels = _resized(frame, stream, rows, columns)
    top, left = (rows - need_height) // 2, (columns - need_width) // 2
    return np.rot90(pixels[top : top + need_height, left : left + need_width], turns)


def _whole(frame: av.VideoFrame, stream) -> UInt8[np.ndarray, "height width 3"]:
    rows, columns = (round(side) for side in _square_size(frame, stream))
    return np.ascontiguousarray(np.rot90(_resized(frame, stream, rows, columns), _quarter_turns(frame)))


def _resized(frame: av.VideoFrame, stream, rows: int, columns: int) -> UInt8[np.ndarray, "rows columns 3"]:
    smaller = rows * columns < frame.height * frame.width
    kernel = Interpolation.AREA if smaller else Interpolation.BICUBIC
    if (curve := stream.codec_context.color_trc) in hdr.CURVES:
        wide = frame.to_ndarray(format="rgb48le", height=rows, width=columns, interpolation=kernel | ACCURATE)
        return hdr.to_sdr(wide, curve)
    # Players take HD without a tag for 709, and smaller pictures, as FFmpeg does all, for 601.
    guess = Colorspace.ITU709 if frame.colorspace == UNSPECIFIED and frame.height >= 720 else None
    return frame.to_ndarray(
        format="rgb24", height=rows, width=columns, src_colorspace=guess, interpolation=kernel | ACCURATE
    )
