"""Prints a digest of the latents that a finished run generates: python generated.py WORKDIR."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from cinema_jax.data.example import Reference
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler


def latents_digest(workdir: Path) -> str:
    """Of a request with one reference."""
    _, sampler = load_sampler(workdir)
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    request = Request("it jumps", (Reference(picture, None, "a"),), seed=5)
    latents = sampler.latents([request], sampler.settings(steps=2))
    return hashlib.sha256(np.asarray(latents).tobytes()).hexdigest()


if __name__ == "__main__":
    print(latents_digest(Path(sys.argv[1])))
