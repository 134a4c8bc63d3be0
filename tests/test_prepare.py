import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import prepared
import pytest
from tiny import process_environment

from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.training import loop
from cinema_jax.training.loop import Trainer
from cinema_jax.training.preparing import prepare
from cinema_jax.training.stages import STAGES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepared.make_folder(tmp_path_factory.mktemp("clips") / "set")


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    """The folder's records, from the packaged VAE."""
    output = tmp_path_factory.mktemp("prepared") / "records"
    assert prepare(parse(prepared.values(folder)), folder, str(output), shard_size=3, batch_size=4)
    return output


def trainer(values, workdir):
    return Trainer(Run.open(parse(values), workdir), STAGES["finetune"], sharding.make_mesh())


def test_the_trainer_makes_the_same_examples_from_records_as_from_videos(folder, output, tmp_path):
    ours = trainer(prepared.values(output, "records"), tmp_path / "records")
    theirs = trainer(prepared.values(folder), tmp_path / "videos")
    for split in ("train", "validation"):
        (records,), (videos,) = ours.examples(split).buckets, theirs.examples(split).buckets
        assert len(records.indices) == len(videos.indices) > 1
        for row in range(len(records.indices)):
            assert records.source.id(row) == videos.source.id(videos.indices[row])
            one, other = (x.finetune(row, np.random.default_rng(row)) for x in (records, videos))
            assert one.keys() == other.keys()
            expected = other.pop("latents")
            # Half a unit in the last of the 8 bits of bf16; XLA sums a little differently in batches of another size.
            np.testing.assert_allclose(one.pop("latents"), expected, rtol=2**-8 + 1e-5, atol=1e-5)
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_finetune_runs_from_records_to_its_contact_sheet(output, tmp_path):
    run = Run.open(parse(prepared.values(output, "records")), tmp_path / "run")
    loop.train(run)
    assert np.isfinite(run.finished("finetune")["eval_loss"])
    assert (run.workdir / "samples" / "contact_sheet.png").exists()
    assert not (run.workdir / "latents").exists()


def test_records_of_another_vae_are_refused(output, tmp_path):
    values = prepared.values(output, "records")
    config = parts.read_config("vae", parts.part_folder("vae", "packaged"))
    parts.write("vae", config, parts.initialise("vae", config, 1), tmp_path / "vae")
    values.weights.vae = str(tmp_path / "vae")
    with pytest.raises(InputError, match="was prepared with another VAE"):
        trainer(values, tmp_path / "run").examples("train")


def test_the_stage_that_needs_pixels_is_refused(output):
    values = prepared.values(output, "records")
    values.stages = ("vae",)
    with pytest.raises(InputError, match=r"config\.stages holds 'vae', which trains on pixels"):
        parse(values)


def test_a_folder_of_other_buckets_or_references_is_refused(folder, tmp_path):
    values, output = prepared.values(folder), str(tmp_path / "records")
    values.data.buckets = ((5, 32, 48, 3),)
    # There is one shard, which is another process's.
    assert not prepare(parse(values), folder, output, process=(1, 2))
    values.data.crop_references = True
    with pytest.raises(InputError, match="otherwise: crop_references is False there and True here"):
        prepare(parse(values), folder, output, process=(1, 2))
    values.data.crop_references = False
    values.data.buckets = ((5, 32, 48, 3), (5, 32, 48, 1))
    with pytest.raises(InputError, match=r"5x32x48x3 holds records .* otherwise: buckets is .*; clips is .*\. Choose"):
        prepare(parse(values), folder, output, process=(1, 2))


def test_a_vae_without_weights_is_refused(folder, tmp_path):
    values = prepared.values(folder)
    values.weights.vae = ""
    with pytest.raises(InputError, match="the vae has no weights"):
        prepare(parse(values), folder, str(tmp_path / "records"))


def test_the_command_reads_a_manifest_of_any_name_and_says_what_is_wrong(folder, tmp_path):
    (folder / "videos.jsonl").write_bytes((folder / "manifest.jsonl").read_bytes())
    command = [sys.executable, "-m", "cinema_jax.prepare", f"--manifest={folder / 'videos.jsonl'}"]
    command += [f"--config={Path(__file__).parents[1] / 'configs' / 'demo.py'}", f"--output={tmp_path / 'out'}"]
    command += ["--config.data.frames=5", "--config.data.height=32", "--config.data.width=32"]
    # As released configs have it: training would want to know the folder, here the manifest says it.
    command += ["--config.data.source=folder"]
    wrong = subprocess.run([*command, "--process-index=2", "--process-count=2"], env=process_environment(), **CAPTURED)
    assert wrong.returncode == 2
    assert "error: --process-index is 2; it must be 0 or more and below --process-count, 2" in wrong.stderr
    made = subprocess.run(command, env=process_environment(), **CAPTURED)
    assert made.returncode == 0, made.stderr
    assert "7 records in 1 shards, 0 videos rejected" in made.stderr
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["max_references"] == 3


CAPTURED = {"capture_output": True, "text": True, "check": False}
