"""docs/first_pod_run.md, walked: its commands as they stand there, from an empty project to the exported model's video.

Stand-ins are Google Cloud, Kubernetes and SLURM (see `cloud`); the networks are small ones in the released layout, and
the config trains them for a few steps. Importing, preparing, training, exporting and generating are the real commands.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cloud
import numpy as np
import prepared
import pytest
from PIL import Image
from released import pipeline, qwen
from tiny import WITHOUT_TORCH

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/first_pod_run.md"
# In the place of configs/cogvideox_5b.py.
CONFIG = """
from configs import cogvideox_2b


def get_config():
    config = cogvideox_2b.get_config()
    config.precision, config.schedule.snr_shift_scale, config.evaluate_identities = "float32", 1.0, 2
    data, condition = config.data, config.condition
    data.frames, data.height, data.width, data.reference_height, data.reference_width = 9, 32, 48, 32, 48
    data.buckets, config.finetune.curriculum, config.finetune.keep_every = (), (), 0
    data.augment.max_side, data.workers, data.validation_fraction = 48, 0, 0.3
    condition.template, condition.text_tokens, condition.mllm_tokens = "demo", 40, 160
    condition.mllm_patches, condition.mllm_max_pixels, condition.mllm_min_pixels = 64, 56 * 56, 28 * 28
    config.dit_model.sequence_multiple = 1
    aligner, flow = config.aligner_model, config.flow
    aligner.num_layers, aligner.width, aligner.num_heads = 1, 32, 2
    flow.sample_steps, flow.tiled_decoding = 1, False
    # From a random AlignerNet on: one stage has all that a walk comes by.
    config.stages, condition.aligner_init = ("finetune",), "random"
    config.finetune.steps, config.finetune.batch_size, config.finetune.checkpoint_every = 2, 2, 1
    config.finetune.log_every = 1
    return config
"""
# Slices of one host; before a release of two, the first of which is taken back after its first checkpoint.
ONE_HOST = {"v5p:4x4x4": "v5p:2x2x1", "v5p:4x4x8": "v5p:2x2x1"}
TWO_HOSTS = {"v5p:4x4x4": "v5p:2x2x2", "v5p:4x4x8": "v5p:2x2x1"}
WALKS = [
    pytest.param((ONE_HOST, False), id="one host"),
    pytest.param((TWO_HOSTS, True), id="two hosts, preempted", marks=pytest.mark.release),
]
SBATCH = """while [[ $1 == --* ]]; do shift; done
SLURM_JOB_ID=7 SLURM_NTASKS_PER_NODE=1 SLURM_GPUS_ON_NODE=1 CINEMA_PYTHON=noted exec bash "$@"
"""


@pytest.fixture(scope="module", params=WALKS)
def walk(request, tmp_path_factory):
    """A checkout in which all commands have run; next to it the cloud, and what they printed."""
    smaller, preempted = request.param
    folder = tmp_path_factory.mktemp("walk")
    checkout = folder / "checkout"
    _check_out(checkout)
    made = folder / "made"
    made.mkdir()
    pipeline(made, rotary=True, scheduler="dpm")
    for name in ("zai-org", "Qwen"):
        (checkout / name).mkdir()
    (made / "pipeline").rename(checkout / "zai-org/CogVideoX-5b")
    qwen(checkout / "Qwen/Qwen2-VL-7B-Instruct", vocab_size=400)
    prepared.make_folder(folder / "videos")
    Image.open(folder / "videos/a.png").save(folder / "rabbit.png")
    # A real check takes as long as all else here; what it is told to look at is noted.
    trains = f'[[ $* != *--check* ]] || {{ echo "checked $*" >>"$CLOUD/calls"; exit; }}\nexec "{sys.executable}" "$@"'
    environment = cloud.make(folder / "cloud", trains) | {"CINEMA_POLL": "1", "PYTHONPATH": WITHOUT_TORCH}
    # Its commands compile once, as those of other tests do.
    environment |= {name: x for name, x in os.environ.items() if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    # `plan` compiles for chips, and has tests of its own.
    cloud.script(folder / "cloud/bin/python", f'[[ $2 != cinema_jax.plan ]] || exit 0\nexec "{sys.executable}" "$@"')
    cloud.script(folder / "cloud/bin/sbatch", SBATCH)
    cloud.script(folder / "cloud/bin/noted", cloud.NOTED)
    if preempted:
        (folder / "cloud/preempt").write_text(f"{folder}/cloud/buckets/BUCKET/5b/checkpoints/finetune/1/*")
    blocks = [_here(block, folder, smaller) for block in cloud.commands(DOCUMENT)]
    walked = folder / "walk.sh"
    walked.write_text("\n".join(["set -euo pipefail", *blocks]))
    try:
        with (folder / "output").open("w") as output:
            done = subprocess.run(["bash", "-x", walked], cwd=checkout, env=environment, stdout=output, stderr=output)
    finally:
        cloud.end(folder / "cloud")
    printed = (folder / "output").read_text()
    assert done.returncode == 0, printed[-6000:]
    assert not (folder / "cloud/preempt").exists(), "the slice was not taken back"
    return checkout, folder / "cloud", printed


def _check_out(root: Path) -> None:
    """The project with the small config; a git checkout, which is what goes to the hosts."""
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "configs").mkdir()
    for name in ("__init__.py", "cogvideox_2b.py"):
        shutil.copy(ROOT / "configs" / name, root / "configs")
    (root / "configs/cogvideox_5b.py").write_text(CONFIG)
    (root / "cinema_jax").symlink_to(ROOT / "cinema_jax")
    shutil.copy(ROOT / ".gitignore", root)
    subprocess.run(["git", "init", "-q", root], check=True)


def _here(block: str, folder: Path, smaller: dict[str, str]) -> str:
    """A block with what is not here replaced: large slices, the hub, and buckets where no launcher mounts them."""
    for large, small in smaller.items():
        block = block.replace(large, small)
    block = block.replace("hf://", "")
    python = re.compile(r"^python -m (?:.*\\\n)*.*$", re.MULTILINE)
    block = python.sub(lambda command: command[0].replace("gs://", f"{folder}/cloud/buckets/"), block)
    return block.replace("/shared/", f"{folder}/shared/")


def test_the_walk_ends_with_a_video_of_the_exported_model(walk):
    checkout, _, _ = walk
    index = json.loads((checkout / "runs/cinema-5b/model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXPipeline"
    assert (checkout / "runs/out.mp4").stat().st_size > 0


def test_the_walk_checks_all_hosts_before_they_train(walk):
    _, folder, _ = walk
    checked = [line for line in cloud.calls(folder) if line.startswith("checked ")]
    assert len(checked) >= 2, "by hand, and by resume on the new slice"
    for line in checked:
        assert "--config=configs/cogvideox_5b.py" in line
        assert line.endswith(f"--check --workdir={folder}/buckets/BUCKET/5b")


def test_the_walk_trains_to_the_end(walk):
    _, folder, printed = walk
    assert re.search(r"Z finished$", printed, re.MULTILINE)
    run = folder / "buckets/BUCKET/5b"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses.keys() == {1, 2}
    assert np.isfinite(list(losses.values())).all()
    assert (run / "stages/finetune.json").exists()
    assert list((run / "logs").glob("*/*.log"))


def test_the_walk_leaves_nothing_that_costs_money(walk):
    _, folder, _ = walk
    assert not (folder / "state").exists()
    assert not (folder / "hosts").exists()


def test_the_walk_applies_a_jobset_and_submits_a_job(walk):
    _, folder, _ = walk
    asked = cloud.calls(folder)
    assert "kubectl apply --filename=-" in asked
    assert [line.split()[-1] for line in asked if line.startswith("noted ")] == [
        "--check",
        f"--config.data.path={folder.parent}/shared/data",
    ]
