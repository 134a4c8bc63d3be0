"""Train the judge of `evaluate`.

It learns from drawn frames of the train split. The same command continues where it stopped. It takes 40
minutes on two busy cores.
"""

from pathlib import Path

from absl import flags

from cinema_jax.commands import command

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for training data and state, for example runs/judge.")
PACKAGE = flags.DEFINE_bool("package", False, "Replace the judge in cinema_jax/assets.")


def main() -> None:
    """Teach, and write the judge's folder."""
    from cinema_jax.evaluation.judge.config import JudgeConfig
    from cinema_jax.evaluation.judge.weights import write_judge
    from cinema_jax.evaluation.teaching import teach
    from cinema_jax.experiment.parts import PACKAGED

    config, workdir = JudgeConfig(), Path(WORKDIR.value)
    params = teach(workdir, config)
    for folder in [workdir / "judge"] + [PACKAGED / "judge"] * PACKAGE.value:
        write_judge(folder, config, params)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    command.run(main, required=["workdir"])
