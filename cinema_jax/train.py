"""Train: `python -m cinema_jax.train --config=configs/demo.py --workdir=runs/demo`.

Runs the config's stages in order. Run again with the same workdir, it goes on where it stopped.
"""

import contextlib
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from cinema_jax import command
from cinema_jax.config import parse, to_dict

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/, for example configs/demo.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and samples go, for example runs/demo.")
HANG = flags.DEFINE_float(
    "hang_seconds",
    90.0,
    "One of several processes ends with an error when a training step takes longer; 0: never.",
    lower_bound=0,
)
PROFILE = flags.DEFINE_string(
    "profile_steps",
    "",
    "FIRST:END, for example 100:105: write a trace of the steps 100 to 104 of the first stage that comes to them to "
    "WORKDIR/profile.",
)
WANDB = flags.DEFINE_string("wandb", "", "A project of Weights & Biases that gets the metrics, too.")
CHECK = flags.DEFINE_bool(
    "check",
    False,
    "Train nothing: compare the hosts, and try links, data, one step and a checkpoint. It leaves compiled programs in "
    "their cache, and nothing else.",
)
CACHE = command.compilation_cache_flag("WORKDIR/compilation_cache")


def main() -> None:
    """Train the stages of the config that are not finished yet."""
    config = command.started_after(lambda: parse(CONFIG.value))
    # Imported here, so that a wrong config is refused before the slow libraries are loaded.
    import jax

    from cinema_jax import compilation
    from cinema_jax.training import check, loop, watchdog
    from cinema_jax.training.profile import parse_steps
    from cinema_jax.training.run import Run
    from cinema_jax.training.wandb import WandB, check_installed

    lengths = [getattr(config, stage).steps for stage in config.stages]
    profile_steps = parse_steps(PROFILE.value, max(lengths, default=0))
    if WANDB.value:
        check_installed()
    if CHECK.value:
        watchdog.start(HANG.value)
        compilation.keep(CACHE.value, f"{WORKDIR.value}/compilation_cache")
        check.check_and_tell(config, Path(WORKDIR.value))
        return
    check.refuse_unlike(config, Path(WORKDIR.value))
    run = Run.open(config, Path(WORKDIR.value))
    compilation.keep(CACHE.value, f"{WORKDIR.value}/compilation_cache")
    watchdog.start(HANG.value)
    if WANDB.value and jax.process_index() == 0:
        with contextlib.closing(WandB(WANDB.value, run.workdir, to_dict(config))) as wandb:
            loop.train(run, profile_steps=profile_steps, sinks=[wandb])
    else:
        loop.train(run, profile_steps=profile_steps)


if __name__ == "__main__":
    command.with_huge_pages()
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
