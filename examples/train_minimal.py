"""The method in one file: align, finetune, and a video of subjects that training never drew.

    python examples/train_minimal.py --align_steps=100 --finetune_steps=100 --output=minimal.mp4

A multimodal LLM reads prompt and reference images together. `align_loss` teaches the AlignerNet to turn its states into
what T5 says of the caption, so that a pretrained text-to-video transformer understands them. `flow_loss` then trains
transformer and AlignerNet on video, with the references' latents beside the video's. `sample` integrates the learned
velocity from noise to video, with guidance over text and references.

Networks and data are this project's packaged toys. What a real run has besides (pods, checkpoints, buckets, cached
latents, averaged weights, held-out reports) is `python -m cinema_jax.train`; the method is the same.
"""

import argparse
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from cinema_jax.cinema import Batch, Cinema, Params
from cinema_jax.data.example import Source
from cinema_jax.data.output import write_video
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.diffusion.flow import sample_noise
from cinema_jax.diffusion.guidance import Branch, guidance_coefficients
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate

# A text-to-video transformer of toy size and its T5; VAE and multimodal LLM are packaged.
PRETRAINED = Path(__file__).parents[1] / "weights/demo_pretrain"


def make_batch(source: Source, preprocessor: Preprocessor, rng: np.random.Generator, size: int) -> Batch:
    """Random examples: the video, its caption for T5, and prompt and references for the multimodal LLM.

    So that guidance has what to compare with, in one of ten neither text nor references are shown, and in one of
    twenty no text: what sampling does without.
    """
    examples = []
    for index in rng.integers(len(source), size=size).tolist():
        example, draw = source.conditions(index, rng), rng.random()
        prompt = "" if draw < 0.15 else example.prompt
        arrays = preprocessor.conditions(prompt, () if draw < 0.1 else example.references)
        tokens, _ = preprocessor.text(example.caption if prompt else "")
        examples.append(arrays | {"caption_tokens": tokens, "video": source.video(index)})
    return collate(examples)


def align_loss(cinema: Cinema, params: Params, batch: Batch, key: Array) -> Float[Array, ""]:
    """Squared error and cosine between the AlignerNet's tokens and T5's features of the caption (section 3.2)."""
    target = cinema.encode_caption(params, batch["caption_tokens"])
    found = cinema.read_prompt(params, batch)
    return jnp.mean((found - target) ** 2) + 1 - jnp.mean(optax.losses.cosine_similarity(found, target))


def flow_loss(cinema: Cinema, params: Params, batch: Batch, key: Array) -> Float[Array, ""]:
    """Error of the velocity on the way from video to noise, at a random time."""
    video = cinema.encode_video(params, batch["video"])
    for_time, for_noise = jax.random.split(key)
    time, noise = jax.nn.sigmoid(jax.random.normal(for_time, len(video))), jax.random.normal(for_noise, video.shape)
    along = time[:, None, None, None, None]
    velocity = cinema.velocity(params, (1 - along) * video + along * noise, time, cinema.conditions(params, batch))
    return jnp.mean((velocity - (noise - video)) ** 2)


def train(cinema: Cinema, params: Params, parts: tuple[str, ...], loss, rate: float, batches, steps: int) -> Params:
    """Train some parts, and leave the others as they are."""
    trained = {path: x for path, x in params.items() if path.split("/")[0] in parts}
    frozen = {path: x for path, x in params.items() if path not in trained}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(rate, steps)))

    @jax.jit
    def step(trained, state, batch, key):
        value, gradient = jax.value_and_grad(lambda x: loss(cinema, {**frozen, **x}, batch, key))(trained)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, value

    state, bar = optimizer.init(trained), tqdm(range(steps), desc=loss.__name__)
    for i in bar:
        trained, state, value = step(trained, state, next(batches), jax.random.key(i))
        bar.set_postfix(loss=f"{value:.3f}")
    return {**frozen, **trained}


def sample(
    cinema: Cinema, params: Params, preprocessor: Preprocessor, prompt: str, references, steps: int = 24, seed: int = 0
) -> np.ndarray:
    """A video, (frames, height, width, 3) uint8, by Euler's method and classifier-free guidance."""
    factors = guidance_coefficients(guidance_text=2.0, guidance_reference=4.0)

    def conditions(branch: Branch):
        shown = preprocessor.conditions(prompt if branch.text else "", references if branch.references else ())
        return jax.jit(cinema.conditions)(params, collate([shown]))

    branches = {branch: conditions(branch) for branch in factors}
    velocity = jax.jit(cinema.velocity)
    data, vae = cinema.config.data, cinema.part(params, "vae")
    key = jax.random.key(seed, impl="threefry2x32")
    video = sample_noise(key[None], vae.latent_shape(data.frames, data.height, data.width))
    # More of the steps where there is much noise: the shift of times that the transformer was trained with.
    times = np.linspace(1, 0, steps + 1)
    times = cinema.config.flow.shift * times / (1 + (cinema.config.flow.shift - 1) * times)
    for now, then in itertools.pairwise(times):
        at = jnp.full(1, now)
        v = sum(factor * velocity(params, video, at, branches[branch]) for branch, factor in factors.items())
        video = video + (then - now) * v
    return np.asarray(jax.jit(cinema.decode_video)(params, video))[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both stages, and write a video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--align_steps", type=int, default=100)
    parser.add_argument("--finetune_steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16, help="examples a step")
    parser.add_argument("--output", default="minimal.mp4")
    options = parser.parse_args(arguments)
    run = Run.load(PRETRAINED)
    # Sizes and weights of all parts in one flat dictionary; the AlignerNet's are random.
    configs, params, _ = run.load_parts(("vae", "t5", "mllm", "aligner", "dit"))
    cinema, preprocessor = Cinema(run.config, configs), run.preprocessor()
    params = {path: jnp.asarray(np.asarray(x), jnp.float32) for path, x in params.items()}
    rng = np.random.default_rng(0)
    batches = iter(functools.partial(make_batch, run.source("train"), preprocessor, rng, options.batch), None)
    params = train(cinema, params, ("aligner",), align_loss, 1e-3, batches, options.align_steps)
    params = train(cinema, params, ("aligner", "dit"), flow_loss, 3e-4, batches, options.finetune_steps)
    example = run.source("test").conditions(0, rng)
    video = sample(cinema, params, preprocessor, example.prompt, example.references)
    write_video(options.output, video, run.config.data.fps)
    print(f"{options.output}: {example.prompt}")


if __name__ == "__main__":
    main()
