"""What `python -m cinema_jax.package` leaves is a checkpoint in half precision that needs nothing else of the run."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
from tiny import DRAWN, process_environment, random_run

from cinema_jax.config import to_dict
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.tokenizer import load_tokenizer
from cinema_jax.weights.tensors import open_tensors


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
    rounded = {part: {path: half(x) for path, x in before.params(part).items()} for part in DRAWN}
    shutil.rmtree(before.workdir)
    shutil.rmtree(tmp_path / "alice")
    packaged = Run.load(output)
    assert str(tmp_path) not in (output / "config.json").read_text()
    assert (packaged.config.init, packaged.config.data.path) == ("", "clips")
    assert packaged.tokenizer().get_vocab() == before.tokenizer().get_vocab()
    for part in DRAWN:
        assert packaged.folder(part) == output / "parts" / part
        assert_rounded(output / "parts" / part, packaged.params(part), rounded[part])


def assert_rounded(folder, found, expected):
    """In half precision on disk, and as the originals are when they are rounded."""
    assert {str(x.dtype) for x in open_tensors(folder).values()} == {"float16"}
    assert found.keys() == expected.keys()
    for path, x in found.items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


# `python -m cinema_jax.package`, with another folder in the place of the project's own, and less room in it.
PLAIN = """
import sys
from pathlib import Path
from absl import flags
from cinema_jax import package
from cinema_jax.experiment import parts
parts.PACKAGED, package.LIMIT = Path(sys.argv[1]), 100
flags.FLAGS(["package", f"--workdir={sys.argv[2]}"])
package.main()
"""


def test_the_small_networks_that_runs_start_from_are_packaged_by_name_and_weighed(tmp_path):
    run = Run.load(random_run(tmp_path / "run"))
    command = [sys.executable, "-c", PLAIN, tmp_path / "assets", run.workdir]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=False)
    assert sorted(path.name for path in (tmp_path / "assets").iterdir()) == ["mllm", "t5", "tokenizer", "vae"]
    for part in ("vae", "t5", "mllm"):
        folder = tmp_path / "assets" / part
        stored = parts.read(part, parts.read_config(part, folder), folder)
        found = {path: x.astype(np.float32) for path, x in stored.items()}
        assert_rounded(folder, found, {path: half(x) for path, x in run.params(part).items()})
    assert load_tokenizer(tmp_path / "assets/tokenizer").get_vocab() == run.tokenizer().get_vocab()
    assert "at most 100 are packaged" in done.stderr
    assert done.returncode != 0


def half(x):
    """As float16 has it."""
    return np.asarray(x).astype(np.float16).astype(np.float32)


def test_a_run_without_a_transformer_is_refused(tmp_path):
    run = random_run(tmp_path / "run")
    shutil.rmtree(run / "parts/dit")
    done = package(f"--workdir={run}", f"--output={tmp_path / 'output'}")
    assert done.returncode != 0
    assert "holds no trained dit" in done.stderr
