"""The CogVideoX-2b transformer at its full size beside diffusers', on the CPU, in fp32:

    pip install -e ".[test]" && python benchmarks/full_2b.py --workdir=/tmp/full_2b

Random weights, written once to the folder as diffusers publishes a transformer (bf16 in shards, 3.4 GB), are read by
both: by ours through its import. A clip of 17 frames of 128 x 128 and 226 text tokens go through both, in turn in one
process. Prints a row in Markdown (medians) and the process' peak memory: two copies of 6.8 GB and what is mapped of
the files.
"""

import dataclasses
import gc
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from diffusers import CogVideoXTransformer3DModel
from flax import nnx
from safetensors import safe_open
from timing import seconds

from cinema_jax.commands import command
from cinema_jax.experiment import parts
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.weights import config_to_hf

WORKDIR = flags.DEFINE_string("workdir", None, "Where the weights are written, or were before (3.4 GB).", required=True)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Runs of each, after one for warming up.", lower_bound=1)
THREADS = 2
# Seconds after which the other library's threads are asleep.
PAUSE = 0.3
CONFIG = CogVideoXConfig()
# Latents of 17 frames of 128 x 128 pixels.
LATENTS = (1, 5, 16, 16, CONFIG.in_channels)
TEXT = (1, CONFIG.max_text_seq_length, CONFIG.text_embed_dim)


def empty() -> CogVideoXTransformer3DModel:
    """Diffusers' network, its numbers not set: its own initialisation takes minutes."""
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config(config_to_hf(CONFIG))
    return model.to_empty(device="cpu").eval().requires_grad_(False)


def write(folder: Path) -> None:
    """Random weights that keep activations of one size: norms at 1, biases at 0, everything else by its inputs."""
    torch.manual_seed(0)
    model = empty().bfloat16()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(float("norm" in name and name.endswith("weight")))
    model.save_pretrained(folder, max_shard_size="500MB")


def theirs(folder: Path) -> CogVideoXTransformer3DModel:
    """Diffusers' network with the folder's weights; no more than one file is mapped at a time."""
    model = empty()
    parameters = dict(model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                parameters.pop(name).copy_(opened.get_tensor(name))
    assert not parameters, f"{folder} lacks {', '.join(parameters)}"
    return model


def ours(folder: Path) -> tuple[int, Callable[..., jax.Array]]:
    """The number of parameters of our network, and its forward pass with the folder's weights."""
    config = dataclasses.replace(parts.read_config("dit", folder), remat="none")
    graph, _ = parts.structure("dit", config)
    arrays = {path: jnp.asarray(x) for path, x in parts.read("dit", config, folder).items()}
    leaves = [(tuple(path.split("/")[1:]), nnx.Param(x)) for path, x in arrays.items()]
    state = nnx.from_flat_state(leaves)
    forward = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    return sum(x.size for x in arrays.values()), lambda *inputs: forward(state, *inputs)


def main(_) -> None:
    """Write the weights unless they are there, and compare."""
    torch.set_num_threads(THREADS)
    folder = Path(WORKDIR.value)
    if not (folder / "config.json").exists():
        write(folder)
        gc.collect()
    start = time.perf_counter()
    our_size, forward = ours(folder)
    print(f"our import: {time.perf_counter() - start:.0f} s")
    gc.collect()
    original = theirs(folder)
    their_size = sum(x.numel() for x in original.parameters())
    print(f"parameters: {their_size:,} in diffusers, {our_size:,} in cinema_jax")
    rng = np.random.default_rng(0)
    video, text = (rng.normal(size=shape).astype(np.float32) for shape in (LATENTS, TEXT))

    def their_forward():
        states = torch.tensor(video).permute(0, 1, 4, 2, 3)
        return original(states, torch.tensor(text), torch.tensor([700.0])).sample.permute(0, 1, 3, 4, 2).numpy()

    def our_forward():
        return forward(video, text, None, None, np.float32([0.7]))

    expected, found = their_forward(), np.asarray(our_forward())
    error = np.abs(found - expected).max() / np.abs(expected).max()
    times = [tuple(seconds(run, pause=PAUSE) for run in (their_forward, our_forward)) for _ in range(ROUNDS.value)]
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(y / x for x, y in times)
    frames, height, width = LATENTS[1], LATENTS[2] // CONFIG.patch_size, LATENTS[3] // CONFIG.patch_size
    name, millions = f"CogVideoX-2b, {TEXT[1] + frames * height * width} tokens, forward", our_size / 1e6
    print("| work | parameters | PyTorch | cinema_jax | ratio | difference |\n|---|---|---|---|---|---|")
    print(f"| {name} | {millions:.1f} M | diffusers {a:.2f} s | {b:.2f} s | {ratio:.2f} | {error:.0e} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"single runs (diffusers, cinema_jax): {', '.join(f'{x:.2f} {y:.2f}' for x, y in times)}")
    print(f"peak memory of the process: {peak:.1f} GiB")


if __name__ == "__main__":
    command.with_huge_pages()
    app.run(main)
