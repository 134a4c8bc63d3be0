"""Package a run's networks with the project, in half precision:

    python -m cinema_jax.package --workdir=runs/scratch         the small networks that runs start from
    python -m cinema_jax.package --workdir=runs/demo_full --demo   what commands sample from if no checkpoint is named

The first writes VAE, T5, MLLM and tokenizer, whichever the run has trained, to `cinema_jax/assets`; the second all that
the run has trained or read from elsewhere than the package, and its config, to `cinema_jax/assets/demo`.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from cinema_jax import command

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run of configs/demo.py:scratch or configs/demo_full.py.")
DEMO = flags.DEFINE_bool("demo", False, "Package the whole run as the demo.")
# All packaged files together, the judge of `evaluate` among them.
LIMIT = 40_000_000


def main() -> None:
    """Copy the trained parts."""
    from cinema_jax import parts
    from cinema_jax.config import to_dict
    from cinema_jax.errors import InputError
    from cinema_jax.training.run import Run

    run = Run.load(Path(WORKDIR.value))
    wanted = parts.KINDS if DEMO.value else ("vae", "t5", "mllm")
    trained = [part for part in wanted if (run.workdir / "parts" / part).is_dir()]
    needed = {"aligner", "dit"} if DEMO.value else set()
    if not trained or not needed <= set(trained):
        raise InputError(f"{run.workdir} holds no trained {' and no '.join(sorted(needed) or wanted)} in its parts/")
    demo = parts.checkpoint_folder("packaged")
    chosen = trained
    if DEMO.value:
        chosen = [part for part in wanted if run.folder(part) not in (None, parts.part_folder(part, "packaged"))]
    for part in chosen:
        folder = demo / "parts" / part if DEMO.value else parts.part_folder(part, "packaged")
        parts.write(part, run.part_config(part), run.params(part), folder, np.float16)
        print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.2f} MB")
    if DEMO.value:
        # What its parts were read from is on this machine only.
        weights = dataclasses.replace(run.config.weights, **dict.fromkeys(chosen, ""))
        parts.write_json(demo / "config.json", to_dict(dataclasses.replace(run.config, weights=weights, init="")))
    else:
        run.tokenizer().save_pretrained(parts.part_folder("tokenizer", "packaged"))
    total = sum(file.stat().st_size for file in parts.PACKAGED.rglob("*") if file.is_file())
    print(f"{parts.PACKAGED}: {total / 1e6:.2f} MB in all")
    if total > LIMIT:
        raise InputError(f"{parts.PACKAGED} has {total} bytes; at most {LIMIT} are packaged")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    command.run(main)
