"""Cached latents belong to the videos as they are now, and only what has changed is encoded."""

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import encoded
import numpy as np
import pytest
from clips import write_clip, write_images
from encoded import BROKEN, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import process_environment

from cinema_jax.commands.command import storage_trouble
from cinema_jax.data.critters.source import Critters
from cinema_jax.data.folder import Folder
from cinema_jax.errors import InputError
from cinema_jax.training import latents
from cinema_jax.training.latents import encode_all

DATASETS = st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5), min_size=1), min_size=1, max_size=5)


def shown(latents) -> dict[int, int]:
    """The number of each encoded video, by its index."""
    return {index: int(latents.values[row].item(0)) for row, index in enumerate(latents.indices)}


@settings(max_examples=60, deadline=None)
@given(DATASETS)
def test_whatever_changes_the_latents_are_those_of_the_videos_and_nothing_is_encoded_twice(datasets):
    with tempfile.TemporaryDirectory() as folder:
        known: set[tuple[str, int]] = set()
        for videos in datasets:
            latents, seen = encode(Path(folder), videos)
            assert shown(latents) == dict(enumerate(videos.values()))
            assert list(latents.indices) == sorted(latents.indices)
            assert isinstance(latents.values, np.memmap)
            assert seen == {number for name, number in videos.items() if (name, number) not in known}
            known |= set(videos.items())


def test_a_video_that_cannot_be_read_leaves_no_gap_and_is_tried_again_when_it_has_changed(tmp_path, caplog):
    latents, _ = encode(tmp_path, {"a": 1, "b": BROKEN, "c": 3})
    assert shown(latents) == {0: 1, 2: 3}
    assert "b is left out: broken" in caplog.text
    latents, seen = encode(tmp_path, {"a": 1, "b": 2, "c": 3})
    assert (shown(latents), seen) == ({0: 1, 1: 2, 2: 3}, {2})


def test_storage_out_of_reach_is_no_fault_of_the_video(tmp_path, monkeypatch):
    def gone(*_):
        raise InputError("b cannot be read") from OSError(errno.EIO, "Input/output error", "/gcs/b.mp4")

    monkeypatch.setattr(encoded.Numbers, "video", gone)
    with pytest.raises(OSError, match=r"/gcs/b\.mp4"):
        encode(tmp_path, {"a": 1})
    assert not list(tmp_path.glob("*.json"))


def test_another_key_or_shape_shares_nothing(tmp_path):
    encode(tmp_path, {"a": 1})
    made = []
    for key, size in (("another", 1), ("the key", 2)):

        def stand_in(clips, size=size):
            made.append(size)
            return clips[:, :, :size, :size].astype(np.float32)

        encode_all(encoded.Numbers({"a": 1}), 0, stand_in, (1, size, size, 3), tmp_path, "train", key, batch_size=2)
    assert made == [1, 2]


def test_a_file_of_an_older_version_is_not_found(tmp_path):
    (tmp_path / "train-0123456789abcdef.json").write_text(json.dumps({"indices": [0], "rejected": {}}))
    np.save(tmp_path / "train-0123456789abcdef.npy", np.zeros((1, 1, 1, 1, 3), np.float32))
    assert encode(tmp_path, {"a": 1})[1] == {1}


def in_two_processes(folder: Path, videos: dict[str, int]) -> list[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names = [f"{name}:{number}" for name, number in videos.items()]
    started = [
        subprocess.Popen(
            [sys.executable, encoded.__file__, str(folder), str(port), str(process), *names],
            env=process_environment() | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return [said.strip().splitlines()[-1] for said, _ in told]


def test_two_processes_share_what_has_changed(tmp_path):
    encode(tmp_path / "two", {"a": 1, "b": 2, "c": 3})
    videos = {"x": 7, "a": 1, "b": 12, "y": BROKEN, "c": 3, "z": 9, "w": 8}
    numbers = "[0, 1, 2, 4, 5, 6] [7, 1, 12, 3, 9, 8]"
    assert in_two_processes(tmp_path / "two", videos) == [f"{numbers} [7, 12]", f"{numbers} [8, 9]"]
    encode(tmp_path / "one", videos)
    file = max((tmp_path / "two").glob("*.npy"), key=lambda file: file.stat().st_size).name
    rows = [np.load(tmp_path / folder / file, mmap_mode="r")[:6] for folder in ("one", "two")]
    assert np.array_equal(*rows)
    assert not list((tmp_path / "two").glob("*.partial"))


def test_processes_make_the_latents_that_threads_make(tmp_path):
    source = Critters("train", frames=5, height=16, width=16)

    def latents(workers: int):
        encode, folder = lambda x: x[:, :2, :2, :2].astype(np.float32), tmp_path / str(workers)
        return encode_all(source, 7, encode, (2, 2, 2, 3), folder, "train", None, batch_size=3, workers=workers).values

    assert np.array_equal(latents(0), latents(2))


@pytest.fixture
def clips(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", frames=30, fps=10)
    return tmp_path


def of_folder(clips: Path, *lines) -> np.ndarray:
    (clips / "manifest.jsonl").write_text("".join(json.dumps({"caption": "c", **line}) + "\n" for line in lines))
    source = Folder(clips, frames=5, height=16, width=16, fps=10, split="all", validation_fraction=0)
    latents = encode_all(
        source, 0, lambda x: x[:, :1, :1, :1].astype(np.float32), (1, 1, 1, 3), clips / "latents", "train", None
    )
    return np.asarray(latents.values[:, 0, 0, 0, 0])


def test_an_entry_whose_cut_file_or_video_changes_gets_new_latents_under_its_old_id(clips):
    def latents(**entry):
        return of_folder(clips, {"video": "b.mp4", "id": "fixed", "end": 0.5}, {"id": "x", **entry})

    fixed, first = latents(video="a.mp4", end=0.5)
    # Frames are 8 grey levels apart.
    assert np.allclose(latents(video="a.mp4", start=1.0, end=1.5), [fixed, first + 80], atol=4)
    write_images(clips / "a.mp4", [np.full((48, 64, 3), 200, np.uint8)] * 10, 10)
    assert np.allclose(latents(video="a.mp4", end=0.5), [fixed, 200], atol=4)
    assert np.allclose(latents(video="b.mp4", end=0.5), [fixed, fixed], atol=4)


def test_drawn_videos_are_known_by_all_that_decides_what_they_show():
    sizes = {"frames": 5, "height": 16, "width": 16}
    sources = [
        Critters(**{**sizes, **other})
        for other in (
            {},
            {"seed": 1},
            {"split": "validation"},
            {"max_subjects": 2},
            {"shares": (1.0, 0.0, 0.0)},
            {"frames": 9},
        )
    ]
    assert len({json.dumps(source.content(3)) for source in sources}) == len(sources)


def test_a_full_disk_is_one_error_before_anything_is_encoded_and_the_next_start_goes_on(tmp_path):
    videos = {"a": 1, "b": 2}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A disk without room for the file: a hole would take it, and end whoever writes there with SIGBUS.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*\.partial") as caught:
            encode(tmp_path, videos)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage_trouble(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert shown(encode(tmp_path, videos)[0]) == {0: 1, 1: 2}


def test_all_of_the_file_has_its_place_before_it_is_written(tmp_path):
    values = latents._reserve(tmp_path / "x.partial", (1000, 100, 1, 1, 1))
    assert os.stat(tmp_path / "x.partial").st_blocks * 512 >= values.nbytes
    assert np.load(tmp_path / "x.partial", mmap_mode="r").shape == values.shape


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[" * 5000, bytes(200)])
def test_what_is_damaged_is_encoded_again(tmp_path, suffix, data, caplog):
    encode(tmp_path, {"a": 1, "b": 2})
    (file,) = tmp_path.glob(f"*.{suffix}")
    file.write_bytes(data)
    found, seen = encode(tmp_path, {"a": 1, "b": 2})
    assert (shown(found), seen) == ({0: 1, 1: 2}, {1, 2})
    assert file.stem in caplog.text


def test_a_link_in_the_place_of_what_is_written_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "x.partial").symlink_to(tmp_path / "victim")
    latents._reserve(tmp_path / "x.partial", (1, 1, 1, 1, 1))
    assert (tmp_path / "victim").read_text() == "mine"
