"""`train --check` on four hosts: what it says where all is well, and of hosts that differ or fail."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checked import DEVICES
from hosts import environment
from prepared import make_folder

from cinema_jax.training import check

SCRIPT, HOSTS = Path(__file__).with_name("checked.py"), 4


@pytest.fixture(scope="module")
def disks(tmp_path_factory) -> Path:
    """Where each host has a folder, and all of them share the clips and the workdir."""
    root = tmp_path_factory.mktemp("checked")
    make_folder(root / "clips")
    (root / "shared").mkdir()
    return root


def run_check(root: Path, name: str, faults: dict[int, str] = {}) -> list[tuple[int, str]]:  # noqa: B006
    """Exit status and messages of each host; `faults`: by host, names that `checked.fault` or this function know."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (root / "shared" / name).mkdir()
    started = []
    for i in range(HOSTS):
        wrong, host = faults.get(i, "").split(","), root / name / str(i)
        host.mkdir(parents=True)
        (host / "data").symlink_to(root / "clips")
        (host / "run").symlink_to(root / "shared" / name)
        said = environment(root, DEVICES - ("device" in wrong))
        if "data" in wrong or "clip" in wrong:
            own_data(host / "data", "data" in wrong)
        if "workdir" in wrong:
            (host / "run").unlink()
            (host / "run").mkdir()
        if "version" in wrong:
            (host / "optax-0.0.1.dist-info").mkdir()
            (host / "optax-0.0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
            said["PYTHONPATH"] = f"{host}{os.pathsep}{said['PYTHONPATH']}"
        flags = [f"--coordinator=localhost:{port}", f"--num_processes={HOSTS}", f"--process_id={i}"]
        seed = "1" if "config" in wrong else "0"
        command = [sys.executable, SCRIPT, faults.get(i, ""), seed, "--check", "--workdir=run", *flags]
        started.append(
            subprocess.Popen(
                command, cwd=host, env=said, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    said = [process.communicate(timeout=300)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def own_data(link: Path, other_manifest: bool) -> None:
    """A copy of the clips in place of the link: with a line less, or all but empty videos."""
    clips = link.resolve()
    link.unlink()
    shutil.copytree(clips, link)
    if other_manifest:
        lines = (link / "manifest.jsonl").read_text().splitlines(keepends=True)
        (link / "manifest.jsonl").write_text("".join(lines[:-1]))
    else:
        for video in link.glob("[0-9].mp4"):
            video.write_bytes(video.read_bytes()[:100])


def line_of(said: str, host: int) -> str:
    """What is wrong with a host."""
    found = re.findall(rf"^  process {host} of {HOSTS} \(.+?\): (.*)$", said, re.MULTILINE)
    assert len(found) == 1, said
    return found[0]


def left_behind(root: Path, name: str) -> list[Path]:
    return list((root / "shared" / name).iterdir())
