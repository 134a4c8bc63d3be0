"""Curation from videos to a folder that is trained from: the same whoever does the work, and however often it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from films import film
from tiny import process_environment

from cinema_jax.curation import curating, sources
from cinema_jax.data.folder import Folder

MISSING = "is not installed (pip install 'cinema_jax[curate]')"
pytest.importorskip("scenedetect", reason=f"PySceneDetect {MISSING}")
OPTIONS = '{"shots": {"shortest": 1.0, "longest": 2.5}}'
RESULTS = ("manifest.jsonl", "rejected.jsonl", "counts.json", "report.html")


def _music(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two films, a copy of one, and files of which nothing can be made; all with captions but one."""
    folder = tmp_path_factory.mktemp("raw")
    film(folder / "a.mp4", {1: 14, 2: 5, 3: 32})
    film(folder / "sub/b.mp4", {4: 12, 1: 14})
    shutil.copy(folder / "a.mp4", folder / "copy of a.mp4")
    film(folder / "silent.mp4", {5: 12})
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:5000])
    (folder / "text.mp4").write_text("no video")
    _music(folder / "music.mp4")
    for file in folder.rglob("*.mp4"):
        if file.stem != "silent":
            file.with_suffix(".txt").write_text(f"The film {file.stem}.")
    (folder / "options.json").write_text(OPTIONS)
    return folder


def _plainly(work, shards, step):
    for shard in shards:
        if not shard.done():
            shard.do(work)


def _curated(raw: Path, output: Path, run=_plainly, shards: int = 256) -> dict[str, str]:
    output.mkdir(exist_ok=True)
    curating.curate(
        sources.matching(f"{raw}/**/*.mp4"), output, curating.read_config(raw / "options.json"), run, shards
    )
    return _written(output)


def _written(output: Path) -> dict[str, str]:
    return {name: (output / name).read_text() for name in RESULTS}


@pytest.fixture(scope="module")
def curated(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    return folder, _curated(raw, folder)


def test_the_manifest_has_the_clips_of_the_films(curated):
    lines = [json.loads(line) for line in curated[1]["manifest.jsonl"].splitlines()]
    assert [(one["video"], one["start"], one["end"]) for one in lines] == [
        ("videos/a.mp4", 0.0, 1.36),
        ("videos/a.mp4", 1.94, 3.52),
        ("videos/a.mp4", 3.52, 5.1),
        ("videos/sub/b.mp4", 0.0, 1.16),
    ]
    assert {one["caption"] for one in lines} == {"The film a.", "The film b."}


def test_everything_else_has_one_line_with_its_reason(curated):
    rejected = [json.loads(line) for line in curated[1]["rejected.jsonl"].splitlines()]
    assert {one["id"]: (one["step"], one["reason"]) for one in rejected} == {
        "a.mp4@1.440": ("shots", "too short"),
        "copy of a.mp4@0.000": ("duplicates", "shown before"),
        "copy of a.mp4@1.440": ("shots", "too short"),
        "copy of a.mp4@1.940": ("duplicates", "shown before"),
        "copy of a.mp4@3.520": ("duplicates", "shown before"),
        "cut.mp4": ("read", "cannot be read"),
        "empty.mp4": ("read", "cannot be read"),
        "music.mp4": ("read", "cannot be read"),
        "silent.mp4": ("caption", "no caption"),
        "sub/b.mp4@1.240": ("duplicates", "shown before"),
        "text.mp4": ("read", "cannot be read"),
    }
    counts = json.loads(curated[1]["counts.json"])
    assert counts["clips"] == 4
    assert counts["videos"] == 8
    assert counts["rejected"]["read"] == {"cannot be read": 4}
    assert sum(sum(step.values()) for step in counts["rejected"].values()) == len(rejected)


def test_training_reads_the_folder(curated):
    folder = Folder(curated[0], frames=9, height=32, width=48, fps=8, validation_fraction=0.0)
    assert len(folder) == 4
    assert {folder.video(i).shape for i in range(4)} == {(9, 32, 48, 3)}
    assert folder.group(0) == folder.group(1) != folder.group(3)


def test_the_report_shows_examples_of_what_was_kept_and_rejected(curated):
    page = curated[1]["report.html"]
    assert "quality: kept" in page
    assert "duplicates: shown before" in page
    assert "data:image/jpeg;base64," in page


def test_nothing_depends_on_how_the_work_is_divided_or_in_which_order_it_is_done(raw, curated, tmp_path):
    def backwards(work, shards, step):
        _plainly(work, shards[::-1], step)

    assert _curated(raw, tmp_path / "one", shards=1) == curated[1]
    assert _curated(raw, tmp_path / "backwards", backwards, shards=3) == curated[1]


def test_what_is_done_is_not_done_again_but_where_a_file_or_an_option_changes(raw, curated, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(curated[0], output)
    done: list[str] = []

    def watched(work, shards, step):
        done.extend(item.name for shard in shards if not shard.done() for item in shard.items)
        _plainly(work, shards, step)

    own = tmp_path / "raw"
    shutil.copytree(raw, own)
    assert _curated(own, output, watched) == curated[1]
    assert not done
    (own / "a.txt").write_text("Another caption.")
    assert "Another caption." in _curated(own, output, watched)["manifest.jsonl"]
    assert not done
    film(own / "new.mp4", {7: 12})
    (own / "new.txt").write_text("A new film.")
    assert "new.mp4@0.000" in _curated(own, output, watched)["manifest.jsonl"]
    assert done == ["new.mp4"]
    (own / "options.json").write_text('{"shots": {"shortest": 1.0, "longest": 3.5}}')
    _curated(own, output, watched)
    assert len(done) == 10


def _command(raw: Path, output: Path, *more: str) -> list[str]:
    words = [f"--videos={raw}/**/*.mp4", f"--output={output}", f"--options={raw}/options.json", *more]
    return [sys.executable, "-m", "cinema_jax.curate", *words]


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=process_environment(), capture_output=True, text=True, check=False)


def test_two_processes_write_the_same(raw, curated, tmp_path):
    pytest.importorskip("apache_beam", reason=f"Apache Beam {MISSING}")
    done = _run(_command(raw, tmp_path / "output", "--workers=2"))
    assert done.returncode == 0, done.stderr
    assert "4 clips of 8 videos, 11 rejected" in done.stdout
    assert _written(tmp_path / "output") == curated[1]


def test_a_killed_command_goes_on_where_it_stopped(raw, curated, tmp_path):
    pytest.importorskip("apache_beam", reason=f"Apache Beam {MISSING}")
    output = tmp_path / "output"
    with subprocess.Popen(_command(raw, output), env=process_environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (found := list((output / "work/look").glob("[0-9]*.json"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert found
    assert not (output / "manifest.jsonl").exists()
    before = {file: os.stat(file).st_mtime_ns for file in found}
    done = _run(_command(raw, output))
    assert done.returncode == 0, done.stderr
    assert _written(output) == curated[1]
    assert {file: os.stat(file).st_mtime_ns for file in found} == before


WRONG = {
    ("--videos=none/*.mp4",): "--videos=none/*.mp4: no file is called so",
    ("--videos=a", "--list=b.csv"): "--videos and --list both say which videos; give one of them",
    ("--list=b.csv", "--output=gs://x/y"): "name a folder that all machines reach",
    ("--list=b.csv", "--shard=3"): "--shard is not a flag of this command; did you mean --shards?",
}


@pytest.mark.parametrize(("words", "why"), WRONG.items(), ids=[why[:30] for why in WRONG.values()])
def test_a_wrong_command_line_ends_with_one_sentence(tmp_path, words, why):
    own = [] if any(word.startswith("--output") for word in words) else [f"--output={tmp_path}/o"]
    done = _run([sys.executable, "-m", "cinema_jax.curate", *words, *own])
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr
