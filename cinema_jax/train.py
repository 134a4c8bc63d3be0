"""Train: `python -m cinema_jax.train --config=configs/demo.py --workdir=runs/demo`.

Runs the config's stages in order. Run again with the same workdir, it goes on where it stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from cinema_jax import command
from cinema_jax.config import parse

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/, for example configs/demo.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and samples go, for example runs/demo.")
HANG = flags.DEFINE_float(
    "hang_seconds",
    90.0,
    "One of several processes ends with an error when a training step takes longer; 0: never.",
    lower_bound=0,
)


def main() -> None:
    """Train the stages of the config that are not finished yet."""
    config = parse(CONFIG.value)
    command.start_processes()
    # Imported here, so that a wrong config is refused before the slow libraries are loaded.
    from cinema_jax.training import loop, watchdog
    from cinema_jax.training.run import Run

    watchdog.start(HANG.value)
    loop.train(Run.open(config, Path(WORKDIR.value)))


if __name__ == "__main__":
    command.with_huge_pages()
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
