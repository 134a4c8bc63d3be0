"""What `python -m cinema_jax.package` leaves is a checkpoint in half precision that needs nothing else of the run."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
from tiny import process_environment, random_run

from cinema_jax import parts
from cinema_jax.config import to_dict
from cinema_jax.training.run import Run


def package(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cinema_jax.package", *words]
    return subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=False)


def test_a_packaged_run_is_whole_and_its_own(tmp_path):
    before = Run.load(random_run(tmp_path / "start"))
    # The transformer alone was trained here; the rest is read from `init`, and words from a folder of their own.
    before.tokenizer().save_pretrained(tmp_path / "alice/words")
    weights = dataclasses.replace(before.config.weights, tokenizer=str(tmp_path / "alice/words"))
    data = dataclasses.replace(before.config.data, source="folder", path=str(tmp_path / "alice/clips"))
    config = dataclasses.replace(before.config, init=str(before.workdir), weights=weights, data=data)
    run, output = tmp_path / "run", tmp_path / "output"
    shutil.copytree(before.workdir / "parts/dit", run / "parts/dit")
    parts.write_json(run / "config.json", to_dict(config))
    assert (done := package(f"--workdir={run}", f"--output={output}")).returncode == 0, done.stderr
    shutil.rmtree(before.workdir)
    shutil.rmtree(tmp_path / "alice")
    packaged = Run.load(output)
    assert str(tmp_path) not in (output / "config.json").read_text()
    assert (packaged.config.init, packaged.config.data.path) == ("", "clips")
    assert packaged.tokenizer().get_vocab() == before.tokenizer().get_vocab()
    for part in parts.KINDS:
        assert packaged.folder(part) == output / "parts" / part
        assert all(np.isfinite(x).all() for x in packaged.params(part).values())


def test_a_run_without_a_transformer_is_refused(tmp_path):
    run = random_run(tmp_path / "run")
    shutil.rmtree(run / "parts/dit")
    done = package(f"--workdir={run}", f"--output={tmp_path / 'output'}")
    assert done.returncode != 0
    assert "holds no trained dit" in done.stderr
