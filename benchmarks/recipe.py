"""What the shipped configs would train on, and what that costs, next to what their transformers were pretrained on.

    python benchmarks/recipe.py

prints the tables of benchmarks/README.md, "The recipes": shares of training times beyond timesteps of the pretraining's
schedule, sizes of references in training and at generation, tokens, and the cost of each phase. Nothing is compiled,
read or trained; half a minute of tracing.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cinema_jax.cinema import Cinema
from cinema_jax.config import Config, parse
from cinema_jax.config.augment import AugmentConfig
from cinema_jax.data.augment import augment_reference
from cinema_jax.data.example import Reference
from cinema_jax.data.preprocessor import Preprocessor, mllm_room
from cinema_jax.diffusion import flow
from cinema_jax.experiment.run import Run
from cinema_jax.planning import cost
from cinema_jax.planning.planner import Target
from cinema_jax.planning.program import abstract_batch, part_configs
from cinema_jax.training.stages import STAGES
from cinema_jax.training.stages.flow import training_times
from cinema_jax.training.work import dit_tokens
from configs import cogvideox_2b, cogvideox_5b

TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x4", "For the cost.")
PRICE = flags.DEFINE_float("price", 4.2, "Of one chip for an hour.")
UTILISATION = flags.DEFINE_float("utilisation", 0.35, "The share of the chips' peak that the products get.")
SHARES = flags.DEFINE_list(
    "shares", ["25", "35", "40"], "Of the steps, that are of each bucket: 4, 2 and 1 references."
)

CONFIGS = {"cogvideox_2b": cogvideox_2b, "cogvideox_5b": cogvideox_5b}
TIMESTEPS = (500, 750, 900, 950, 990)
BATCHES = 200
# A subject (width, height) in a picture (width, height), with a mask.
SUBJECTS = (
    ((200, 360), (1280, 720)),
    ((300, 540), (1920, 1080)),
    ((160, 300), (1920, 1080)),
    ((700, 900), (1024, 1024)),
)
DRAWS = 40


def config_of(name: str, variant: str = "") -> Config:
    """A shipped config; no data are read."""
    module = CONFIGS[name]
    values = module.get_config(variant) if variant else module.get_config()
    values.data.path = "videos"
    return parse(values)


def times(config: Config) -> list[float]:
    """The share of finetune's training times at or beyond each of `TIMESTEPS`."""
    size = config.finetune.batch_size
    levels, found = config.schedule.flow_times(), []
    for step in range(BATCHES):
        indices = jnp.arange(step * size, (step + 1) * size)
        keys = flow.example_keys(jax.random.key(0, impl="threefry2x32"), indices)
        found.append(np.asarray(training_times(config, "finetune", keys, indices)))
    drawn = np.concatenate(found)
    return [float(np.mean(drawn >= np.float32(levels[timestep]))) for timestep in TIMESTEPS]


def height_of(box: np.ndarray) -> int:
    """Pixels from the first to the last row that shows anything but white."""
    rows = np.flatnonzero((box < 250).any(axis=(1, 2)))
    return int(rows[-1] - rows[0] + 1)


def heights(config: Config, subject: tuple[int, int], picture: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """How tall the VAE sees a subject: at generation, and in training, least and most of some draws."""
    (width, height), (across, down) = subject, picture
    mask = np.zeros((down, across), np.uint8)
    left, top = (across - width) // 2, (down - height) // 2
    mask[top : top + height, left : left + width] = 255
    reference = Reference(np.full((down, across, 3), 90, np.uint8), mask, "a")
    reader = Preprocessor(config, None, None)
    shown = reader.cropped(reference)
    for augment in (AugmentConfig.none(), config.data.augment, config.data.augment_same_clip or config.data.augment):
        drawn = [augment_reference(shown, np.random.default_rng(seed), augment) for seed in range(DRAWS)]
        seen = drawn[:1] if augment == AugmentConfig.none() else drawn
        found = [height_of(reader.entities([one])["references"][0]) for one in seen]
        yield min(found), max(found)


def tokens(run: Run) -> Iterator[list[str]]:
    """Of each bucket: tokens of the transformer, and of the multimodal LLM, of an example."""
    for bucket in run.buckets:
        config = bucket.config
        cinema = Cinema(config, part_configs(bucket, STAGES["finetune"].needed(config)))
        room, patches = mllm_room(config, cinema.part_configs["mllm"].vision)
        dit = dit_tokens(cinema, abstract_batch(cinema, "finetune", 1))
        yield [bucket.bucket_name, f"{dit:,}", f"{room:,}", f"{patches:,}"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(_) -> None:
    """Print the tables."""
    configs = {name: config_of(name) for name in CONFIGS} | {"cogvideox_2b:times": config_of("cogvideox_2b", "times")}
    beyond = [["pretraining", *(f"{1 - timestep / 1000:.1%}" for timestep in TIMESTEPS)]]
    beyond += [[name, *(f"{share:.1%}" for share in times(config))] for name, config in configs.items()]
    print(table(["training times beyond timestep", *map(str, TIMESTEPS)], beyond))
    sizes = []
    for subject, picture in SUBJECTS:
        ranges = heights(configs["cogvideox_2b"], subject, picture)
        told = [f"{least}" if least == most else f"{least} to {most}" for least, most in ranges]
        sizes.append([f"{subject[0]}x{subject[1]} in {picture[0]}x{picture[1]}", *told])
    print(table(["subject, picture", "generation", "training", "training, of the same clip"], sizes))
    target, shares = Target(TOPOLOGY.value), [float(share) for share in SHARES.value]
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(configs[name], Path(folder))
            print(table([name, "transformer", "multimodal LLM", "its patches"], list(tokens(run))))
            found = cost.costs(run, target, PRICE.value, UTILISATION.value, shares)
            print(cost.table(found, run, target, PRICE.value, UTILISATION.value), "\n")


if __name__ == "__main__":
    app.run(main)
