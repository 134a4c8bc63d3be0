"""Prepare videos: `python -m cinema_jax.prepare --manifest=videos.jsonl --config=configs/mine.py --output=gs://...`.

Encodes every video of a manifest once, with the config's VAE, size and rate, into records that training reads with
config.data.source=records. Start it on as many hosts as there are; run again, it goes on where it stopped.
"""

import hashlib
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

from cinema_jax import command
from cinema_jax.config import Config, parse
from cinema_jax.errors import InputError

MANIFEST = flags.DEFINE_string("manifest", None, "A manifest (.jsonl), or the folder of a manifest.jsonl.")
CONFIG = config_flags.DEFINE_config_file("config", None, "The config that will be trained: size, rate and VAE.")
OUTPUT = flags.DEFINE_string("output", None, "Where the records go: a folder, or gs://...")
SHARD_SIZE = flags.DEFINE_integer("shard_size", 128, "Videos of a file.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Videos that each device encodes at once.", lower_bound=1)
RETRY = flags.DEFINE_boolean("retry_rejected", False, "Make the files again in which a video was rejected.")
INDEX = flags.DEFINE_integer("process_index", None, "This process's number, where JAX is not distributed.")
COUNT = flags.DEFINE_integer("process_count", None, "How many processes there are, where JAX is not distributed.")


def main() -> None:
    """Make this process's share of the records."""
    config = parse(CONFIG.value)
    prepare(
        config,
        Path(MANIFEST.value),
        OUTPUT.value,
        process=_process(),
        shard_size=SHARD_SIZE.value,
        batch_size=BATCH_SIZE.value,
        retry_rejected=RETRY.value,
    )
    _wait_for_the_others()


def prepare(
    config: Config,
    manifest: Path,
    output: str,
    *,
    process: tuple[int, int] = (0, 1),
    shard_size: int = 128,
    batch_size: int = 8,
    retry_rejected: bool = False,
) -> bool:
    """Make the records of one process of several, (its number, how many there are); returns whether all are made."""
    # Imported here, so that a wrong config is refused before the slow libraries are loaded.
    import jax

    from cinema_jax.checkpoint import digest
    from cinema_jax.cinema import Cinema
    from cinema_jax.data.folder import Folder
    from cinema_jax.data.manifest import manifest_file
    from cinema_jax.training.latents import vae_key
    from cinema_jax.training.preparing import Output, Preparation, make_encode
    from cinema_jax.training.run import Run

    data = config.data
    sizes = {name: getattr(data, name) for name in ("frames", "height", "width", "fps", "max_references")}
    source = Folder(manifest, split="all", **sizes)
    configs, params, origins = Run(config, Path(output)).load_parts(["vae"])
    if origins["vae"] == "random":
        raise InputError("the vae has no weights: name them as config.weights.vae, or a checkpoint as config.init")
    encode, together = make_encode(Cinema(config, configs), params), batch_size * jax.local_device_count()
    clips = jax.ShapeDtypeStruct((together, data.frames, data.height, data.width, 3), np.uint8)
    key = {
        "manifest": hashlib.sha256(manifest_file(manifest).read_bytes()).hexdigest()[:16],
        "vae": vae_key(digest(params), configs["vae"]),
        "shape": list(jax.eval_shape(encode, clips).shape[1:]),
        "shard_size": shard_size,
        **sizes,
    }
    work = Preparation(source, Output(epath.Path(output)), key, shard_size, retry_rejected)
    whole = work.run(encode, process, together, data.threads)
    if not whole:
        print(f"{output}: this process's files are made, others are not yet; the last process closes the folder")
    return whole


def _wait_for_the_others() -> None:
    """A process that leaves early ends the others, where JAX is distributed."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cinema_jax.prepare")


def _process() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if (INDEX.value is None) != (COUNT.value is None):
        raise InputError("--process_index and --process_count go together")
    if INDEX.value is None:
        import jax

        return jax.process_index(), jax.process_count()
    if not 0 <= INDEX.value < COUNT.value:
        raise InputError(
            f"--process_index is {INDEX.value}; it must be 0 or more and below --process_count, {COUNT.value}"
        )
    return INDEX.value, COUNT.value


if __name__ == "__main__":
    command.with_huge_pages()
    flags.mark_flags_as_required(["manifest", "config", "output"])
    command.run(main)
