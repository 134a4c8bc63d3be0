"""docs/extending.md: its files are written, its lines are changed and its commands run, in a copy of the package."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import WITHOUT_TORCH, process_environment

from cinema_jax.experiment import parts
from cinema_jax.models.backbone import BackboneConfig

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/extending.md").read_text()
# Name and text of each.
SECTIONS = dict(re.findall(r"^## A ([\w ]+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
# The stage that each of them trains.
STAGE = {"data source": "pretrain", "stage": "stills", "backbone": "pretrain", "metric": "t5"}


def applied(section: str, folder: Path) -> list[str]:
    """Do what a section says, in a copy of the package; returns its commands."""
    skipped = shutil.ignore_patterns("__pycache__", "assets")
    for name in ("cinema_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    (folder / "cinema_jax/assets").symlink_to(ROOT / "cinema_jax/assets")
    commands = []
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL):
        if kind == "text":
            commands.append(block)
            continue
        name, text = re.fullmatch(r"# (\S+)\n(.*)", block, re.DOTALL).groups()
        file = folder / name
        if kind == "python":
            assert not file.exists(), name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        else:
            before = "".join(line[1:] for line in text.splitlines(True) if line[0] in " -")
            after = "".join(line[1:] for line in text.splitlines(True) if line[0] in " +")
            whole = file.read_text()
            assert whole.count(before.rstrip("\n")) == 1, f"{name} has not once: {before}"
            file.write_text(whole.replace(before.rstrip("\n"), after.rstrip("\n")))
    return commands


@pytest.fixture(scope="module", params=STAGE)
def extended(request, tmp_path_factory):
    """The name of a section, and the folder in which its command has run."""
    folder = tmp_path_factory.mktemp("extended")
    environment = process_environment() | {"PYTHONPATH": os.pathsep.join([str(folder), WITHOUT_TORCH])}
    (command,) = applied(request.param, folder)
    program, *words = shlex.split(command)
    assert program == "cinema-jax"
    done = subprocess.run(
        [sys.executable, "-m", "cinema_jax", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, folder, environment


def test_an_extension_trains_as_the_document_says(extended):
    section, folder, environment = extended
    (workdir,) = (folder / "runs").iterdir()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {STAGE[section]}
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    closing = json.loads((workdir / f"stages/{STAGE[section]}.json").read_text())
    assert closing["steps"] == 4
    if section == "backbone":
        assert json.loads((workdir / "parts/dit/config.json").read_text())["_class_name"] == "Mixer"
    if section == "metric":
        assert all(0 <= row["kept_accuracy"] <= 1 for row in rows if "loss" in row)
        assert "eval_kept_accuracy" in closing
        told = "from cinema_jax.evaluation import own; print(own._MEANINGS['contrast'])"
        done = subprocess.run([sys.executable, "-c", told], cwd=folder, env=environment, capture_output=True, text=True)
        assert "washed out" in done.stdout


def test_the_changed_files_are_as_tidy_as_all_others(extended):
    _, folder, _ = extended
    shutil.copy(ROOT / "pyproject.toml", folder)
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *check, "cinema_jax"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", parts.KINDS["dit"], ids=lambda kind: kind.config.__name__)
def test_every_backbone_has_what_the_document_asks_for(kind):
    config = kind.config()
    assert isinstance(config, BackboneConfig)
    assert config.tokens((2, 4, 4, config.in_channels), (1, 4, 4, config.in_channels)) > 0
