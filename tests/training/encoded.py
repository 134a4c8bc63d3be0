"""Videos of one number each, and their encoding with a stand-in for the VAE.

As a program, encodes in one of two processes: python encoded.py FOLDER PORT PROCESS VIDEOS..., a video being id:number.
"""

import sys
from pathlib import Path

import numpy as np

from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.training.latents import Latents, encode_all

# A video of this number cannot be read.
BROKEN = 13


class Numbers:
    """A source of the videos {id: number}."""

    def __init__(self, videos: dict[str, int]):
        self.videos = list(videos.items())

    def __len__(self):
        return len(self.videos)

    def id(self, index):
        return self.videos[index][0]

    def content(self, index):
        return list(self.videos[index])

    def video(self, index):
        if self.videos[index][1] == BROKEN:
            raise InputError("broken")
        return np.full((1, 2, 2, 3), self.videos[index][1], np.uint8)

    def frame(self, index, rng):
        return self.video(index)[0]

    def caption(self, index):
        return ""

    def conditions(self, index, rng):
        raise NotImplementedError


def encode(folder: Path, videos: dict[str, int]) -> tuple[Latents, set[int]]:
    """The latents of the videos, and which numbers were encoded for that."""
    seen: set[int] = set()

    def stand_in(clips):
        seen.update(clips[:, 0, 0, 0, 0].tolist())
        return clips[:, :, :1, :1].astype(np.float32)

    return encode_all(Numbers(videos), 0, stand_in, (1, 1, 1, 3), folder, "train", "the key", batch_size=2), seen


if __name__ == "__main__":
    folder, port, process, *videos = sys.argv[1:]
    distributed.start(f"localhost:{port}", 2, int(process))
    latents, seen = encode(Path(folder), {name: int(number) for name, number in (video.split(":") for video in videos)})
    print(list(latents.indices), latents.values[: len(latents.indices), 0, 0, 0, 0].astype(int).tolist(), sorted(seen))
    distributed.together("the end")
