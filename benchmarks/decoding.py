"""How fast videos are read beside a plain loop of PyAV, one thread each:

    python benchmarks/decoding.py --video=bigbuckbunny.mp4

First every frame in order, then `--clips` clips of 9 frames at 8 frames/s from random moments, all at 64 x 64 pixels.
Both decode the same frames; ours picks them by time, turns, crops and checks them too.
"""

import random
import statistics
from collections.abc import Callable

import av
from absl import app, flags
from timing import seconds

from cinema_jax.data.video import probe, read_frames

VIDEO = flags.DEFINE_string("video", None, "A video file.", required=True)
CLIPS = flags.DEFINE_integer("clips", 40, "How many clips.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is measured; the medians count.")
SIZE = 64
FRAMES, FPS = 9, 8


def plain(start: float, count: int | None, step: float) -> int:
    """Decodes from `start` on, and converts one frame every `step` seconds; returns how many frames were decoded."""
    decoded, taken = 0, 0
    with av.open(VIDEO.value) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if start:
            container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            decoded += 1
            if frame.time >= start + taken * step - 1e-6:
                frame.to_ndarray(format="rgb24", width=SIZE, height=SIZE)
                taken += 1
            if taken == count:
                break
    return decoded


def median_seconds(function: Callable[[], object]) -> float:
    """Of some runs."""
    return statistics.median(seconds(function) for _ in range(ROUNDS.value))


def main(_) -> None:
    """Print the table."""
    info = probe(VIDEO.value)
    whole = info.frames, info.fps
    print(f"{info.frames} frames of {info.width} x {info.height} at {info.fps:g} frames/s\n")
    print("| work | plain PyAV, frames/s | cinema_jax, frames/s | ratio |\n|---|---|---|---|")
    chance = random.Random(0)
    starts = [chance.uniform(0.1, info.duration - FRAMES / FPS - 0.1) for _ in range(CLIPS.value)]
    # Frames that any reader has to decode: from the key frame before the clip to its end.
    decoded = sum(plain(start, FRAMES, 1 / FPS) for start in starts)
    for name, frames, theirs, ours in (
        (
            "all frames",
            info.frames,
            lambda: plain(0, None, 0),
            lambda: read_frames(VIDEO.value, whole[0], whole[1], SIZE, SIZE),
        ),
        (
            f"{CLIPS.value} clips of {FRAMES} frames at {FPS} frames/s",
            decoded,
            lambda: [plain(start, FRAMES, 1 / FPS) for start in starts],
            lambda: [read_frames(VIDEO.value, FRAMES, FPS, SIZE, SIZE, start) for start in starts],
        ),
    ):
        plain_rate, our_rate = frames / median_seconds(theirs), frames / median_seconds(ours)
        print(f"| {name} | {plain_rate:.0f} | {our_rate:.0f} | {our_rate / plain_rate:.2f} |")


if __name__ == "__main__":
    app.run(main)
