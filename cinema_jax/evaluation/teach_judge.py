"""Make the packaged judge: `python -m cinema_jax.evaluation.teach_judge --workdir=runs/judge --package`.

Draws its lessons from the train split, learns, and goes on where it was stopped. 40 minutes on two busy cores.
"""

from pathlib import Path

from absl import flags

from cinema_jax import command

WORKDIR = flags.DEFINE_string("workdir", None, "Where lessons and the state go, for example runs/judge.")
PACKAGE = flags.DEFINE_bool("package", False, "Replace the judge in cinema_jax/assets.")


def main() -> None:
    """Teach, and write the judge's folder."""
    from cinema_jax.evaluation.teaching import teach
    from cinema_jax.models.judge.config import JudgeConfig
    from cinema_jax.models.judge.weights import write_judge
    from cinema_jax.parts import PACKAGED

    config, workdir = JudgeConfig(), Path(WORKDIR.value)
    params = teach(workdir, config)
    for folder in [workdir / "judge"] + [PACKAGED / "judge"] * PACKAGE.value:
        write_judge(folder, config, params)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    command.run(main)
