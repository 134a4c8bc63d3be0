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
            subprocess.Popen(command, cwd=host, env=said, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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


def test_hosts_that_are_alike_are_told_what_works_and_nothing_is_left_behind(disks):
    results = run_check(disks, "good")
    assert [status for status, _ in results] == [0] * HOSTS, results[0][1]
    told = dict(re.findall(r"^(\w+) {2,}(.*)$", results[0][1], re.MULTILINE))
    assert told.keys() == {
        *("hosts", "clocks", "workdir", "disks", "devices", "links", "data", "step", "checkpoint", "space")
    }
    assert told["devices"] == "8 x cpu, 2 a host; mesh data 2 x fsdp 4"
    assert told["links"].startswith("data, fsdp: sums and gathers are right")
    assert told["data"].endswith("process 0 rows 0-1; process 1 rows 2-3; process 2 rows 4-5; process 3 rows 6-7")
    assert re.search(r"GB written in .*, read in .*, the same bits", told["checkpoint"])
    assert left_behind(disks, "good") == []


def test_each_host_that_differs_is_named_with_what_differs(disks):
    results = run_check(disks, "unlike", {1: "version,clock", 2: "config,workdir", 3: "data,disk"})
    assert [status for status, _ in results] == [2] * HOSTS
    for _, said in results:
        assert "optax is '0.0.1', and '" in line_of(said, 1)
        assert "its clock is +30.0 s off the others'" in line_of(said, 1)
        assert "config.seed is 1, and 0 elsewhere" in line_of(said, 2)
        assert "it does not see what process 0 makes in run" in line_of(said, 2)
        assert "the train data is '4 examples, " in line_of(said, 3)
        assert re.search(r"it cannot write \d+ bytes to run/check-\d+/process-3: File too large", line_of(said, 3))
        assert "process 0 of" not in said
    assert left_behind(disks, "unlike") == []


@pytest.mark.release
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("device", "the number of devices is 1, and 2 elsewhere"),
        ("clip", r"\d\.mp4"),
        ("room", r"run has 0\.000 GB free, and needs room for 3 checkpoints of 0\.\d+ GB \(pretrain: keep 2"),
        ("link", "over data a sum or gather came out wrong on device"),
    ],
)
def test_a_host_that_fails_alone_is_named(disks, fault, told):
    results = run_check(disks, fault, {2: fault})
    assert [status for status, _ in results] == [2] * HOSTS
    for _, said in results:
        assert re.search(told, line_of(said, 2))
    assert left_behind(disks, fault) == []


def test_the_value_of_most_hosts_is_the_one_that_others_differ_from():
    said = {0: {"jax": "2"}, 1: {"jax": "1"}, 2: {"jax": "1", "libtpu": "3"}}
    assert check.differences(said) == {
        0: ["jax is '2', and '1' elsewhere"],
        1: [],
        2: ["libtpu is '3', and not there elsewhere"],
    }
