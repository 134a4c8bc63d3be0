"""Clips of several sizes in one run: which bucket each belongs to, and in which order the buckets' steps come."""

from collections import Counter

import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from cinema_jax.data.buckets import Bucket, choose
from cinema_jax.data.folder import Folder
from cinema_jax.data.loader import BucketOrder, Loader, LoaderConfig, Order
from cinema_jax.errors import InputError

WIDE, TALL, SHORT, SMALL, ALONE = (
    Bucket(*sizes)
    for sizes in ((49, 480, 720, 4), (49, 720, 480, 4), (17, 480, 720, 4), (49, 240, 368, 4), (49, 480, 720, 1))
)


@pytest.mark.parametrize(
    ("buckets", "clip", "expected"),
    [
        # (height, width, frames, subjects)
        ((WIDE, TALL), (1080, 1920, 60, 2), 0),
        ((WIDE, TALL), (1920, 1080, 60, 2), 1),
        # A square lies between them: the first.
        ((WIDE, TALL), (512, 512, 60, 2), 0),
        # The most frames that the clip has, though a tall clip would rather be tall.
        ((WIDE, SHORT), (480, 720, 49.4, 0), 0),
        ((WIDE, SHORT), (480, 720, 48.9, 0), 1),
        ((TALL, SHORT), (1280, 720, 20, 0), 1),
        # Not enlarged where another does.
        ((WIDE, Bucket(49, 240, 360, 4)), (300, 450, 60, 0), 1),
        ((WIDE, Bucket(49, 240, 360, 4)), (480, 720, 60, 0), 0),
        # Room for the subjects, but no more.
        ((WIDE, ALONE), (480, 720, 60, 1), 1),
        ((WIDE, ALONE), (480, 720, 60, 2), 0),
        ((SHORT, ALONE), (480, 720, 10, 1), None),
        ((ALONE,), (480, 720, 60, 2), None),
    ],
)
def test_a_clip_belongs_to_the_bucket_of_the_nearest_shape(buckets, clip, expected):
    assert choose(buckets, *clip) == expected


def test_a_picture_is_a_clip_of_one_frame_and_no_longer_one(tmp_path):
    """Whatever its duration says: a PNG is .04 s long."""
    Image.new("RGB", (64, 32), (9, 99, 9)).save(tmp_path / "still.png")
    Image.new("RGB", (64, 32), (99, 9, 9)).save(tmp_path / "still.jpg")
    write_clip(tmp_path / "clip.mp4", 16, 8, (32, 64))
    (tmp_path / "manifest.jsonl").write_text(
        "".join(f'{{"video": "{name}", "caption": "a"}}\n' for name in ("still.png", "still.jpg", "clip.mp4"))
    )
    buckets, size = (Bucket(9, 32, 64, 1), Bucket(1, 32, 64, 1)), {"height": 32, "width": 64, "fps": 8}
    clips, stills = (
        Folder(tmp_path, split="all", buckets=buckets, bucket=i, frames=bucket.frames, **size)
        for i, bucket in enumerate(buckets)
    )
    assert [clips.id(0), stills.id(0), stills.id(1)] == ["clip.mp4@0", "still.png@0", "still.jpg@0"]
    assert (len(clips), len(stills)) == (1, 2)
    assert np.abs(stills.video(0)[0].astype(int) - (9, 99, 9)).max() < 4
    both = Folder(tmp_path, split="all", buckets=buckets, bucket=0, others=(1,), frames=1, **size)
    assert [both.id(i) for i in range(3)] == ["still.png@0", "still.jpg@0", "clip.mp4@0"]


def test_one_bucket_is_ordered_as_ever():
    alone, order = BucketOrder((23,), 8, 3, True), Order(23, 3, True)
    assert [alone[i] for i in range(100)] == [order[i] for i in range(100)]


def test_steps_come_from_buckets_by_their_sizes_and_show_every_entry():
    sizes, batch = (60, 30, 10), 5
    order = BucketOrder(sizes, batch, 0, True)
    entries = [[order[step * batch + row] for row in range(batch)] for step in range(200)]
    buckets = [{int(np.searchsorted((60, 90, 100), entry, side="right")) for entry in step} for step in entries]
    assert all(len(step) == 1 for step in buckets)
    assert Counter(bucket for step in buckets for bucket in step) == {0: 120, 1: 60, 2: 20}
    # Well mixed: no ten steps in a row without the second bucket, and every epoch shows all.
    assert all({1} in buckets[i : i + 10] for i in range(190))
    assert Counter(entry for step in entries for entry in step) == dict.fromkeys(range(100), 10)
    again = BucketOrder(sizes, batch, 0, True)
    assert [again[i] for i in (999, 5, 500)] == [order[i] for i in (999, 5, 500)]


def shown(entry, global_index, rng):
    if entry in (2, 7):
        raise InputError("corrupt")
    return {"entry": np.int32(entry), "shape": np.zeros(1 if entry < 6 else 2)}


def test_hosts_load_the_same_steps_and_replace_within_a_bucket():
    config = LoaderConfig(4, seed=1, num_threads=0)
    whole = [batch for _, batch in Loader((6, 3), shown, config).steps(0, 12)]
    hosts = [Loader((6, 3), shown, config, rows=rows) for rows in ((0, 3), (1, 2))]
    halves = [[batch for _, batch in host.steps(0, 12)] for host in hosts]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert np.array_equal(batch["entry"][[0, 3, 1, 2]], np.concatenate([part["entry"] for part in parts]))
        assert len(set(batch["entry"] < 6)) == 1
    assert {entry for batch in whole for entry in batch["entry"].tolist()} == set(range(9)) - {2, 7}


def test_a_folder_is_divided_and_says_what_fits_nowhere(tmp_path, caplog):
    for name, height, width, count in (("wide", 32, 64, 16), ("tall", 64, 32, 16), ("brief", 32, 64, 2)):
        write_clip(tmp_path / f"{name}.mp4", count, 8, (height, width))
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "manifest.jsonl").write_text(
        "".join(f'{{"video": "{name}.mp4", "caption": "a"}}\n' for name in ("wide", "tall", "brief", "broken"))
    )
    buckets = (Bucket(9, 32, 64, 2), Bucket(9, 64, 32, 2))
    parts = []
    for i, (frames, height, width, references) in enumerate(buckets):
        size = {"frames": frames, "height": height, "width": width, "fps": 8, "max_references": references}
        parts.append(Folder(tmp_path, split="all", buckets=buckets, bucket=i, **size))
    assert [[folder.id(i) for i in range(len(folder))] for folder in parts] == [
        ["wide.mp4@0", "broken.mp4@0"],
        ["tall.mp4@0"],
    ]
    assert parts[1].video(0).shape == (9, 64, 32, 3)
    assert "1 of 4 clips fit no bucket" in caplog.text
    assert "brief.mp4@0" in caplog.text
    with pytest.raises(InputError, match="broken"):
        parts[0].video(1)
