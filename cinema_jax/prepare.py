"""Encode every video of a manifest once, into records that many runs and hosts can train on.

The config decides size, frame rate and VAE. Training reads the records with --config.data.source=records. Any number of
processes can share the work. The same command continues where it stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from cinema_jax.commands import command
from cinema_jax.config import parse
from cinema_jax.data.manifest import manifest_file
from cinema_jax.errors import InputError
from cinema_jax.inputs.places import check_folder

MANIFEST = flags.DEFINE_string("manifest", None, "A manifest (.jsonl), or a folder that holds manifest.jsonl.")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config that will be trained; it decides size, frame rate and VAE."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the records, also gs://...")
SHARD_SIZE = flags.DEFINE_integer("shard_size", 128, "Videos in each file.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Videos encoded at once on each device.", lower_bound=1)
RETRY = flags.DEFINE_boolean("retry_rejected", False, "Write the files again in which a video was rejected.")
INDEX = flags.DEFINE_integer("process_index", None, "Number of this process, from 0, where JAX is not distributed.")
COUNT = flags.DEFINE_integer("process_count", None, "Number of processes, where JAX is not distributed.")


def main() -> None:
    """Make this process's share of the records."""
    _check_files()
    values = CONFIG.value
    # What the config leaves open is what --manifest says.
    values.data.path = values.data.path or MANIFEST.value
    config = parse(values)
    command.start_processes()
    # Imported here, so that a wrong config is refused before the slow libraries are loaded.
    from cinema_jax.training.preparing import prepare

    whole = prepare(
        config,
        Path(MANIFEST.value),
        OUTPUT.value,
        process=_process(),
        shard_size=SHARD_SIZE.value,
        batch_size=BATCH_SIZE.value,
        retry_rejected=RETRY.value,
    )
    if not whole:
        print(f"{OUTPUT.value}: this process's files are made; the process that makes the last ones closes the folder")
    _wait_for_the_others()


def _check_files() -> None:
    """Raises `InputError` where the manifest is not there, or the records cannot be."""
    file = manifest_file(MANIFEST.value)
    if not file.is_file():
        inside = "" if file == Path(MANIFEST.value) else f", or the folder holds no {file.name}"
        raise InputError(f"--manifest={MANIFEST.value}: no such file{inside}; name a manifest (.jsonl) or its folder")
    if "://" not in OUTPUT.value:
        check_folder(Path(OUTPUT.value))


def _wait_for_the_others() -> None:
    """A process that leaves early ends the others, where JAX is distributed."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cinema_jax.prepare")


def _process() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if (INDEX.value is None) != (COUNT.value is None):
        raise InputError("--process-index and --process-count go together")
    if INDEX.value is None:
        import jax

        return jax.process_index(), jax.process_count()
    if not 0 <= INDEX.value < COUNT.value:
        raise InputError(
            f"--process-index is {INDEX.value}; it must be 0 or more and below --process-count, {COUNT.value}"
        )
    return INDEX.value, COUNT.value


if __name__ == "__main__":
    command.with_huge_pages()
    command.run(main, required=["manifest", "config", "output"])
