"""The shipped configs for accelerators at full width, two layers each, through all that a run comes by."""

import json
import subprocess
import sys
from pathlib import Path

import dry_run
import numpy as np
import pytest
from tiny import process_environment

from cinema_jax.experiment.run import Run


@pytest.mark.release
@pytest.mark.parametrize("config", ["cogvideox_2b", "cogvideox_5b"])
def test_a_released_size_goes_through_all_stages_and_phases(config, tmp_path):
    """On four virtual devices; takes 12 GB of memory."""
    program = [sys.executable, str(Path(dry_run.__file__)), config, str(tmp_path)]
    done = subprocess.run(program, env=process_environment(4), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    workdir = tmp_path / "run"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for stage, steps in dry_run.STEPS.items():
        losses = [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]
        assert len(losses) == steps
        assert np.isfinite(losses).all()
    run = Run.load(workdir)
    assert np.isfinite(run.finished("finetune")["eval_loss"])
    # Of each phase, and in it of each number of references, latents of their own.
    frames = [np.load(file, mmap_mode="r").shape[1] for file in (workdir / "latents").glob("train-*.npy")]
    assert sorted(frames) == [1, 1, 1, 3, 3, 3, 5, 5, 5]
    assert (workdir / "samples/contact_sheet.png").exists()
    for phrase in ("finetune, up to 1 frames: to step 2 in batches of 8", "finetune: to step 9 in batches of 4"):
        assert phrase in done.stderr
