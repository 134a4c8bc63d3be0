"""The picture at the top of the README, from the packaged demo:

    python docs/demo_picture.py

The first two scenes each of one, two and three critters that nothing was trained on, of a seed that nothing was chosen
by; every video is the first one sampled.
"""

from pathlib import Path

import numpy as np

from cinema_jax.data.critters.source import Critters
from cinema_jax.data.sheets import Group, Row, contact_sheet, spread
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler

SEED, EACH, FRAMES, TILE = 3, 2, 5, 96


def main() -> None:
    """Write docs/demo.png."""
    _, sampler = load_sampler("packaged")
    source, found = Critters("test", seed=SEED), {1: [], 2: [], 3: []}
    for index in range(len(source)):
        told = source.conditions(index, np.random.default_rng(index))
        if len(found[len(told.references)]) < EACH:
            found[len(told.references)].append(told)
        if all(len(rows) == EACH for rows in found.values()):
            break
    chosen = [told for rows in found.values() for told in rows]
    requests = [Request(told.prompt, told.references, seed) for seed, told in enumerate(chosen)]
    videos = sampler(requests, sampler.settings())
    rows = [
        Row(
            [
                Group("references", [reference.image for reference in told.references]),
                Group("the demo's video", spread(video, FRAMES)),
            ],
            told.prompt,
        )
        for told, video in zip(chosen, videos, strict=True)
    ]
    contact_sheet(rows, TILE).save(Path(__file__).with_name("demo.png"))


if __name__ == "__main__":
    main()
