"""Package a run's small networks with the project: `python -m cinema_jax.package --workdir=runs/scratch`.

Writes VAE, T5, MLLM and tokenizer, whichever the run has trained, to `cinema_jax/assets` in half precision.
"""

from pathlib import Path

import numpy as np
from absl import flags

from cinema_jax import command

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run of configs/demo.py:scratch.")
# All packaged files together, the judge of `evaluate` among them.
LIMIT = 12_000_000


def main() -> None:
    """Copy the trained parts."""
    from cinema_jax import parts
    from cinema_jax.errors import InputError
    from cinema_jax.training.run import Run

    run = Run.load(Path(WORKDIR.value))
    trained = [part for part in ("vae", "t5", "mllm") if (run.workdir / "parts" / part).is_dir()]
    if not trained:
        raise InputError(f"{run.workdir} holds no trained vae, t5 or mllm in its parts/")
    for part in trained:
        folder = parts.part_folder(part, "packaged")
        parts.write(part, run.part_config(part), run.params(part), folder, np.float16)
        print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.2f} MB")
    run.tokenizer().save_pretrained(parts.part_folder("tokenizer", "packaged"))
    total = sum(file.stat().st_size for file in parts.PACKAGED.rglob("*") if file.is_file())
    print(f"{parts.PACKAGED}: {total / 1e6:.2f} MB in all")
    if total > LIMIT:
        raise InputError(f"{parts.PACKAGED} has {total} bytes; at most {LIMIT} are packaged")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    command.run(main)
