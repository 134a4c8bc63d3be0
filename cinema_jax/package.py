"""Copy a run's weights into the project, in half precision.

    --workdir=runs/scratch                                            the small networks that runs start from
    --workdir=runs/full/demo --demo                                   the packaged demo
    --workdir=runs/full/more_crowds --output=weights/demo_pretrain    a folder for config.init

The first writes VAE, T5, MLLM and tokenizer, whichever the run trained, to cinema_jax/assets. The others write its
config and all parts that the run trained or read from outside the package, to cinema_jax/assets/demo or the folder.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cinema_jax.commands import command

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run of configs/demo.py:scratch or configs/demo_full.py.")
DEMO = flags.DEFINE_bool("demo", False, "Write the whole run as the packaged demo.")
OUTPUT = flags.DEFINE_string("output", None, "Write the whole run to this folder, not into the package.")
# All packaged files together, the judge of `evaluate` among them.
LIMIT = 40_000_000


def main() -> None:
    """Copy the trained parts."""
    from cinema_jax.errors import InputError
    from cinema_jax.experiment import parts
    from cinema_jax.experiment.run import Run

    run = Run.load(Path(WORKDIR.value))
    if DEMO.value or OUTPUT.value:
        _write_whole(run, Path(OUTPUT.value) if OUTPUT.value else parts.checkpoint_folder("packaged"))
    else:
        trained = [part for part in ("vae", "t5", "mllm") if (run.workdir / "parts" / part).is_dir()]
        if not trained:
            raise InputError(f"{run.workdir} holds no trained vae, t5 or mllm in its parts/")
        for part in trained:
            _write(run, part, parts.part_folder(part, "packaged"))
        run.tokenizer().save_pretrained(parts.part_folder("tokenizer", "packaged"))
    total = sum(file.stat().st_size for file in parts.PACKAGED.rglob("*") if file.is_file())
    print(f"{parts.PACKAGED}: {total / 1e6:.2f} MB in all")
    if total > LIMIT:
        raise InputError(f"{parts.PACKAGED} has {total} bytes; at most {LIMIT} are packaged")


def _write_whole(run: Any, output: Path) -> None:
    """All that is not packaged already, and the config without what lies on this machine only."""
    from cinema_jax.config import to_dict
    from cinema_jax.errors import InputError
    from cinema_jax.exchange.sources import copy_companions
    from cinema_jax.experiment import parts
    from cinema_jax.experiment.pipelines import without_sources

    needed = {"aligner", "dit"} if DEMO.value else {"dit"}
    if missing := sorted(part for part in needed if not (run.workdir / "parts" / part).is_dir()):
        raise InputError(f"{run.workdir} holds no trained {' and no '.join(missing)} in its parts/")
    names = (*parts.KINDS, *parts.TOKENIZERS)
    packaged = [name for name in names if run.folder(name) == parts.part_folder(name, "packaged")]
    chosen = [name for name in names if name not in packaged and run.folder(name) is not None]
    for name in chosen:
        if name in parts.TOKENIZERS:
            copy_companions(run.folder(name), output / "parts" / name)
        else:
            _write(run, name, output / "parts" / name)
    for name in set(names) - set(chosen):
        # Of an earlier run that was packaged here: it would be taken for this one's.
        shutil.rmtree(output / "parts" / name, ignore_errors=True)
    config = without_sources(to_dict(run.config))
    config["weights"].update(dict.fromkeys(packaged, "packaged"))
    parts.write_json(output / "config.json", config)


def _write(run: Any, part: str, folder: Path) -> None:
    from cinema_jax.experiment import parts

    parts.write(part, run.part_config(part), run.params(part), folder, np.float16)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    command.run(main, required=["workdir"])
