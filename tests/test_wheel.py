"""An installed wheel: what configs and the main command need is found without a checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What makes a build, without what builds and tests have left in a checkout.
BUILT_FROM = ("cinema_jax", "configs", "weights")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "requirements.txt", "README.md", "LICENSE", "NOTICE")
# A wheel is built from the archive of sources, as PyPI's users do: both must be complete.
BUILD = """
import os, sys, tarfile
from pathlib import Path
from setuptools import build_meta
output = sys.argv[1]
sources = Path(output, build_meta.build_sdist(output))
tarfile.open(sources).extractall(output, filter="data")
os.chdir(Path(output, sources.name.removesuffix(".tar.gz")))
build_meta.build_wheel(output)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the archive of sources and the wheel."""
    copy, output = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built")
    for folder in BUILT_FROM:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, copy / file)
    done = subprocess.run([sys.executable, "-c", BUILD, output], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs `cinema-jax` of an installed wheel in an empty folder; dependencies are those of this environment."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", f"--target={site}", wheel]
    assert (done := subprocess.run(pip, capture_output=True, text=True)).returncode == 0, done.stderr

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        # Not the checkout's, which tests have in it.
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [str(site / "bin/cinema-jax"), *words]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    run.site, run.empty = site, empty
    return run


def test_the_wheel_and_the_sources_hold_each_file_that_ships_once(built):
    (wheel,), (sources,) = built.glob("*.whl"), built.glob("*.tar.gz")
    shipped = {
        str(file.relative_to(ROOT))
        for folder in ("configs", "weights")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    names = zipfile.ZipFile(wheel).namelist()
    inside = "cinema_jax/shipped/"
    assert {name.removeprefix(inside) for name in names if name.startswith(inside)} == shipped
    assert not [name for name in names if name.startswith(("configs", "weights", "tests"))]
    assert {f"cinema_jax-0.1.0.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= set(names)
    with tarfile.open(sources) as archive:
        archived = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped <= archived
    assert not [name for name in archived if "shipped/" in name]


def test_the_main_command_finds_its_config_and_weights(installed):
    """The demo itself, as far as it goes without training: its pretrained transformer is read, and its step is run."""
    done = installed("train", "--config=configs/demo.py", "--workdir=run", "--check", "--config.align.batch_size=2")
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout
    assert list(installed.empty.rglob("*.py")) == []


def test_a_config_of_ones_own_starts_from_a_shipped_one(installed):
    file = installed.empty / "configs/mine.py"
    file.parent.mkdir()
    file.write_text(
        "from configs import demo_full\n\n\n"
        "def get_config():\n"
        '    config = demo_full.get_config("demo")\n'
        "    config.condition.mllm_tokens = 'many'\n"
        "    return config\n"
    )
    done = installed("train", "--config=configs/mine.py", "--workdir=run")
    shutil.rmtree(file.parent)
    assert done.returncode == 2
    assert "mllm_tokens" in done.stderr


def test_a_config_that_is_nowhere_is_refused_with_both_places(installed):
    done = installed("train", "--config=configs/dem.py", "--workdir=run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: --config is 'configs/dem.py', which is no file here ({installed.empty}) or among those that ship with "
        f"the project ({installed.site}/cinema_jax/shipped/configs); accepted is a file such as configs/demo.py, and "
        "FILE:VARIANT where it has variants"
    )


@pytest.mark.release
def test_the_short_run_trains_every_stage(installed):
    done = installed("train", "--config=configs/demo.py:smoke", "--workdir=smoke")
    assert done.returncode == 0, done.stderr
    assert (installed.empty / "smoke/samples/contact_sheet.png").is_file()
    assert (installed.empty / "smoke/stages/finetune.json").is_file()
