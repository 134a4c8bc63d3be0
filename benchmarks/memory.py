"""Peak memory by length of the video, from the demo's 9 frames to 81:

    python benchmarks/memory.py --checkpoint=runs/demo

Prints what the compiled programs for encoding and decoding need beside the parameters
(inputs, outputs and temporaries, as XLA plans them), and the peak resident memory of a process that generates a video.
"""

import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cinema_jax.data.example import Reference
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a finished training run.", required=True)
GENERATE = flags.DEFINE_integer("generate", None, "Generate so many frames and print this process's peak (MiB).")
LENGTHS = (9, 25, 49, 81)
MIB = 2**20


def planned(function, *arguments) -> float:
    """MiB of a compiled call, its parameters (the first argument) aside."""
    plan = jax.jit(function).lower(*arguments).compile().memory_analysis()
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[0]))
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return (total - plan.alias_size_in_bytes - parameters) / MIB


def generate(frames: int) -> None:
    """Sample one video and say how much memory the process had at most."""
    _, sampler = load_sampler(Path(CHECKPOINT.value))
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    sampler([Request("it jumps", (Reference(picture, None, "a"),))], sampler.settings(frames=frames, steps=2))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(_) -> None:
    """Print the table."""
    if GENERATE.value:
        return generate(GENERATE.value)
    run, sampler = load_sampler(Path(CHECKPOINT.value))
    cinema, data = sampler.cinema, run.config.data
    vae_params = {path: x for path, x in sampler.params.items() if path.startswith("vae/")}
    print(
        "| frames | latents | clip, fp32 | encode | decode | whole process that generates |\n|---|---|---|---|---|---|"
    )
    for frames in LENGTHS:
        shape = cinema.part(sampler.params, "vae").latent_shape(frames, data.height, data.width)
        latents = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        video = jax.ShapeDtypeStruct((1, frames, data.height, data.width, 3), jnp.uint8)
        sizes = [4 * np.prod(latents.shape) / MIB, 4 * np.prod(video.shape) / MIB]
        sizes += [planned(cinema.encode_video, vae_params, video), planned(cinema.decode_video, vae_params, latents)]
        command = [sys.executable, __file__, f"--checkpoint={CHECKPOINT.value}", f"--generate={frames}"]
        sizes.append(float(subprocess.check_output(command)))
        print(f"| {frames} | {' | '.join(f'{size:.2f} MiB' for size in sizes)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
