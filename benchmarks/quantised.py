"""What weights of one byte change in the videos of a checkpoint, as PSNR against its own weights:

    python benchmarks/quantised.py

Of latents the peak is their range, of frames 255. Six videos of the packaged demo (or --checkpoint), sampled together.
"""

from pathlib import Path

import numpy as np
from absl import app, flags

from cinema_jax.sampling.pipeline import Pipeline

CHECKPOINT = flags.DEFINE_string("checkpoint", "packaged", "As for generate.")
STEPS = flags.DEFINE_list("steps", ["4", "12"], "Steps of the sampler.")
EXAMPLES = Path(__file__).parents[1] / "examples"
ASKED = (
    ("the blue bird jumps up", ("blue_bird.png",)),
    ("the blue bird chases the red bird", ("blue_bird.png", "red_bird.png")),
)
SEEDS = range(3)


def psnr(one: np.ndarray, other: np.ndarray, peak: float) -> float:
    """In dB."""
    return 10 * np.log10(peak**2 / np.mean(np.square(one.astype(float) - other)))


def sampled(weights: str | None) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Bytes of all weights, and of each number of steps latents and frames."""
    pipe = Pipeline.from_pretrained(CHECKPOINT.value, weights=weights)
    prompts = [prompt for prompt, _ in ASKED for _ in SEEDS]
    pictures = [[EXAMPLES / name for name in names] for _, names in ASKED for _ in SEEDS]
    requests = pipe.requests(prompts, pictures, seed=[*SEEDS] * len(ASKED))
    found = []
    for steps in map(int, STEPS.value):
        latents = np.asarray(pipe.sampler.latents(requests, pipe.checked(requests, steps=steps)))
        found.append((latents, np.asarray(pipe.sampler.decode(pipe.params, latents))))
    return sum(x.nbytes for x in pipe.params.values()), found


def main(_) -> None:
    """Print the table."""
    before, plain = sampled(None)
    print(
        "| weights | bytes of all | steps | latents, median (least) | frames, median (least) |\n|---|---|---|---|---|"
    )
    for weights in ("int8", "fp8"):
        size, found = sampled(weights)
        for steps, own, other in zip(STEPS.value, plain, found, strict=True):
            latents = [psnr(one, two, np.ptp(one)) for one, two in zip(own[0], other[0], strict=True)]
            frames = [psnr(one, two, 255) for one, two in zip(own[1], other[1], strict=True)]
            said = (f"{np.median(x):.1f} ({min(x):.1f}) dB" for x in (latents, frames))
            print(f"| {weights} | {size / before:.2f} | {steps} | {' | '.join(said)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
