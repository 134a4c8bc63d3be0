"""Clips of critters a second, drawn by threads and by processes, as `train` draws them to encode them.

    python benchmarks/rendering.py --pixels=64 --pixels=128 --workers=2

Prints a Markdown table. Both kinds take turns in one run, twice; the better time of each counts. It is checked that the
clips are the same to the byte.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

import numpy as np
from absl import app, flags

from cinema_jax.data.critters.source import Critters
from cinema_jax.data.worker import ClipReader, Workers

PIXELS = flags.DEFINE_multi_integer("pixels", [64, 128], "Sides of the clips, of 9 frames.")
CLIPS = flags.DEFINE_integer("clips", 96, "How many are drawn.")
WORKERS = flags.DEFINE_integer("workers", 2, "Processes, and threads in their place.")


def drawn(read: Callable[[int], np.ndarray], threads: int) -> tuple[float, list[np.ndarray]]:
    """Clips a second, and the clips."""
    with ThreadPoolExecutor(threads) as pool:
        # What starts the processes is no part of it.
        list(pool.map(read, range(2 * threads)))
        begun = time.perf_counter()
        clips = list(pool.map(read, range(CLIPS.value)))
        return CLIPS.value / (time.perf_counter() - begun), clips


def main(_: list[str]) -> None:
    """Draw them."""
    count = WORKERS.value
    print(f"| pixels | {count} threads | {count} processes | ratio |\n|---|---|---|---|")
    for pixels in PIXELS.value:
        reader, best, shown = ClipReader(Critters("train", frames=9, height=pixels, width=pixels)), [0.0, 0.0], []
        for _turn in range(2):
            for kind, workers in enumerate((0, count)):
                with closing(Workers(reader, workers)) if workers else nullcontext(reader) as read:
                    speed, clips = drawn(read, 2 * count if workers else count)
                best[kind] = max(best[kind], speed)
                shown.append(clips)
        assert all(np.array_equal(one, other) for clips in shown for one, other in zip(clips, shown[0], strict=True))
        print(f"| {pixels} | {best[0]:.0f} | {best[1]:.0f} | {best[1] / best[0]:.2f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
