import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import prepared
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from prepared import files, make_folder, preparation, run
from tiny import process_environment

from cinema_jax.data.folder import Folder
from cinema_jax.devices.interruption import Interrupted
from cinema_jax.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("clips") / "set")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What one process made without trouble."""
    output = tmp_path_factory.mktemp("whole") / "records"
    assert run(folder, output)
    return files(output)


@pytest.fixture
def broken(tmp_path):
    """A folder of its own; `broken(names)` damages videos of it."""
    root = make_folder(tmp_path / "broken")

    def damage(*names):
        for name in names:
            (root / name).write_bytes(b"no video")
        return root

    return damage


def test_two_processes_make_the_files_that_one_makes(folder, whole, tmp_path):
    assert not run(folder, tmp_path / "records", (1, 2))
    assert "dataset_info.json" not in files(tmp_path / "records")
    assert run(folder, tmp_path / "records", (0, 2))
    assert files(tmp_path / "records") == whole


def test_a_killed_run_goes_on_to_the_same_files_and_keeps_the_shards_it_has(folder, whole, tmp_path):
    output = tmp_path / "records"
    command = [sys.executable, prepared.__file__, str(folder), str(output), "1"]
    killed = subprocess.run(command, env=process_environment(), check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    first, left = output / "videos-train.array_record-00000-of-00003", files(output)
    assert first.name in left
    assert "videos-train.array_record-00001-of-00003" not in left
    written = first.stat().st_mtime_ns
    assert run(folder, output)
    assert files(output) == whole
    assert first.stat().st_mtime_ns == written


def test_storage_out_of_reach_is_no_fault_of_the_videos(folder, whole, tmp_path, monkeypatch):
    def gone(*_):
        raise InputError("a clip cannot be read") from OSError(errno.EIO, "Input/output error", "/gcs/a.mp4")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "video", gone)
        with pytest.raises(OSError, match=r"/gcs/a\.mp4"):
            run(folder, tmp_path / "records")
    assert run(folder, tmp_path / "records")
    assert files(tmp_path / "records") == whole


def test_a_signal_ends_the_run_with_one_sentence_and_it_goes_on(folder, whole, tmp_path):
    signals = [signal.SIGTERM]

    def encode(clips):
        if signals:
            signal.raise_signal(signals.pop())
        return prepared.encode(clips)

    with pytest.raises(Interrupted, match="SIGTERM in shard 0; the same command goes on"):
        run(folder, tmp_path / "records", encode=encode)
    assert run(folder, tmp_path / "records")
    assert files(tmp_path / "records") == whole


def test_a_whole_folder_is_left_alone(folder, whole, tmp_path):
    output = tmp_path / "records"
    assert run(folder, output)

    def encode(clips):
        raise AssertionError("nothing is left to encode")

    assert run(folder, output, encode=encode)
    assert files(output) == whole


def test_a_shard_that_is_gone_or_cut_is_made_again(folder, whole, tmp_path):
    output = tmp_path / "records"
    assert run(folder, output)
    (output / "videos-train.array_record-00000-of-00003").unlink()
    (output / "videos-train.array_record-00002-of-00003").write_bytes(b"cut")
    assert run(folder, output)
    assert files(output) == whole


def test_a_shard_that_another_process_makes_is_left_to_it(folder, whole, tmp_path):
    output = tmp_path / "records"
    with preparation(folder, output).output.lock("00001"):
        assert not run(folder, output)
        assert "shards/00001.json" not in files(output)
        assert "shards/00002.json" in files(output)
    assert run(folder, output)
    assert files(output) == whole


def test_a_folder_of_other_records_is_refused(folder, tmp_path):
    assert run(folder, tmp_path / "records")
    with pytest.raises(
        InputError, match=r"otherwise: fps is 8\.0 there and 4\.0 here; vae is 'a stand-in' there and 'mine' here\. "
    ):
        run(folder, tmp_path / "records", vae="mine", fps=4.0)


def test_one_video_that_cannot_be_read_is_listed_and_left_out(broken, tmp_path):
    output = tmp_path / "records"
    assert run(broken("3.mp4"), output)
    (line,) = (output / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "3.mp4@0.2"
    assert "3.mp4: this video cannot be decoded" in json.loads(line)["reason"]
    assert json.loads((output / "ids.json").read_text()) == [f"{i}.mp4@{0.2 * (i % 2):g}" for i in (0, 1, 2, 4, 5, 6)]


def test_a_reference_that_cannot_be_read_rejects_its_video(broken, tmp_path):
    with pytest.raises(InputError, match=r"2 of 7 videos cannot be read, more than 1 %: .*a\.png"):
        run(broken("a.png"), tmp_path / "records")


def test_too_many_end_the_run_and_once_mended_are_tried_again_on_request(broken, folder, whole, tmp_path):
    output, root = tmp_path / "records", broken("0.mp4", "4.mp4")
    with pytest.raises(InputError, match=r"2 of 7 videos cannot be read, more than 1 %: 0\.mp4@0: .*; 4\.mp4@0: "):
        run(root, output)
    for name in ("0.mp4", "4.mp4"):
        (root / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="2 of 7 videos"):
        run(root, output)
    assert run(root, output, retry_rejected=True)
    assert files(output) == whole


def test_a_bucket_gets_the_same_files(folder, whole, tmp_path, monkeypatch):
    class Bucket(MemoryFileSystem):
        protocol = "gcs"
        store, pseudo_dirs = {}, [""]

        def __init__(self, **options):
            super().__init__()

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(path.removeprefix("gs://").removeprefix("gcs://"))

    fsspec.register_implementation("gcs", Bucket, clobber=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(folder, "gs://bucket/records")
    found = {name.removeprefix("/bucket/records/"): file.getvalue() for name, file in Bucket.store.items()}
    assert found == whole
    assert not list(Path(tmp_path).rglob("*.partial"))
