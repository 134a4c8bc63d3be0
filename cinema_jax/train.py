"""Train the stages of a config, in order.

The same command continues a run that was stopped. With --amend it continues with a changed config, where that leaves
what was already trained as it is: with more steps, for example.
"""

import contextlib
import shlex
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from cinema_jax.commands import command
from cinema_jax.config import Config, parse, to_dict
from cinema_jax.devices import distributed
from cinema_jax.inputs.places import check_workdir

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/demo.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and samples, for example runs/demo.")
HANG = flags.DEFINE_float(
    "hang_seconds",
    90.0,
    "With several processes: end with an error when a training step takes longer; 0: never.",
    lower_bound=0,
)
PROFILE = flags.DEFINE_string(
    "profile_steps",
    "",
    "FIRST:END, for example 100:105: write a trace of steps 100 to 104, of the first stage that has so many, to "
    "WORKDIR/profile.",
)
AMEND = flags.DEFINE_bool(
    "amend",
    False,
    "Continue WORKDIR with a changed config: more steps, other settings of stages that have not begun, or other "
    "sampling. WORKDIR/history.jsonl records the changes.",
)
WANDB = flags.DEFINE_string("wandb", "", "Also log metrics to this project of Weights & Biases.")
CHECK = flags.DEFINE_bool(
    "check",
    False,
    "Train nothing: compare the hosts, and try links, data, one step and a checkpoint. Compiled programs stay in their "
    "cache; everything else that it writes is removed.",
)
CACHE = command.compilation_cache_flag("WORKDIR/compilation_cache")


def main() -> None:
    """Train the stages of the config that are not finished yet."""
    config = command.started_after(_config)
    # Imported here, so that a wrong config is refused before the slow libraries are loaded.
    import jax

    from cinema_jax.devices import compilation, watchdog
    from cinema_jax.experiment.run import Run
    from cinema_jax.training import beginning, check, loop
    from cinema_jax.training.profile import parse_steps
    from cinema_jax.training.wandb import WandB, check_installed

    lengths = [config.of_stage(stage).steps for stage in config.stages]
    profile_steps = parse_steps(PROFILE.value, max(lengths, default=0))
    if WANDB.value:
        check_installed()
    if CHECK.value:
        watchdog.start(HANG.value)
        compilation.keep(CACHE.value, f"{WORKDIR.value}/compilation_cache")
        check.check_and_tell(config, Path(WORKDIR.value), amend=AMEND.value)
        return
    check.refuse_unlike(config, Path(WORKDIR.value))
    Run(config, Path(WORKDIR.value)).refuse_another(AMEND.value)
    # First, so that a run which cannot begin leaves nothing.
    beginning.check(Run(config, Path(WORKDIR.value)))
    run = Run.open(config, Path(WORKDIR.value), amend=AMEND.value)
    compilation.quickly(max(lengths, default=0))
    compilation.keep(CACHE.value, f"{WORKDIR.value}/compilation_cache")
    watchdog.start(HANG.value)
    if WANDB.value and jax.process_index() == 0:
        with contextlib.closing(WandB(WANDB.value, run.workdir, to_dict(config))) as wandb:
            loop.train(run, profile_steps=profile_steps, sinks=[wandb])
    else:
        loop.train(run, profile_steps=profile_steps)
    if distributed.is_first():
        print(_next(run))


def _config() -> Config:
    """That of the command line, once nothing is wrong with it."""
    config = parse(CONFIG.value)
    check_workdir(Path(WORKDIR.value))
    return config


def _next(run: Any) -> str:
    """What to type now."""
    if "finetune" not in run.config.stages:
        return f"done: {run.workdir}. Next: train further stages on it with --config.init={run.workdir}"
    folder = run.config.data.source != "critters"
    picture = "PICTURE.png" if folder else "examples/blue_bird.png"
    prompt = "..." if folder else "the bird jumps up"
    return (
        f"done: {run.workdir}/samples/contact_sheet.png shows held-out examples. Next:\n"
        f"python -m cinema_jax.generate --checkpoint={shlex.quote(str(run.workdir))} --reference={picture} "
        f'--prompt="{prompt}" --output=out.mp4'
    )


if __name__ == "__main__":
    command.with_huge_pages()
    command.run(main, required=["config", "workdir"])
