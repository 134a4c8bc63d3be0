"""The steps of curation, each for itself: shots, quality, duplicates, and the lists of videos."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import write_images
from films import FPS, film, scene

from cinema_jax.curation import duplicates, quality, sources
from cinema_jax.curation.curating import read_config
from cinema_jax.curation.shots import LONGER_SIDE, ShotConfig, Span, clips, cut_frames, shots
from cinema_jax.data.video import each_frame
from cinema_jax.errors import InputError

GOOD = np.stack(scene(1, 24))


def test_every_frame_is_read_once_with_its_time_and_small(tmp_path):
    frames = list(each_frame(film(tmp_path / "a.mp4", {1: 6, 2: 4}), 100))
    assert [time for time, _ in frames] == pytest.approx([i / FPS for i in range(10)])
    assert {frame.shape for _, frame in frames} == {(75, 100, 3)}


def test_cuts_are_found_where_they_were_made(tmp_path):
    pytest.importorskip("scenedetect", reason="PySceneDetect is not installed (pip install 'cinema_jax[curate]')")
    frames = each_frame(film(tmp_path / "a.mp4", {1: 12, 2: 9, 3: 15, 4: 8}), LONGER_SIDE)
    assert cut_frames((frame for _, frame in frames), ShotConfig()) == [12, 21, 36]


def test_shots_have_the_times_of_their_frames_also_where_the_rate_changes(tmp_path):
    pytest.importorskip("scenedetect", reason="PySceneDetect is not installed (pip install 'cinema_jax[curate]')")
    stamps = [100 * i if i < 10 else 1000 + 300 * (i - 10) for i in range(20)]
    write_images(tmp_path / "a.mkv", scene(1, 10) + scene(2, 10), 10, stamps)
    found = shots(each_frame(tmp_path / "a.mkv", LONGER_SIDE), 4.0, ShotConfig())
    assert found == [Span(0.0, 1.0), Span(1.0, 4.0)]


def test_clips_leave_out_what_is_beside_a_cut_and_divide_long_shots_evenly():
    config = ShotConfig(margin=0.1, shortest=2.0, longest=6.0)
    kept, short = clips([Span(0.0, 5.1), Span(5.1, 7.2), Span(7.2, 21.3)], config)
    assert kept == [Span(0.0, 5.0), Span(7.3, 11.967), Span(11.967, 16.633), Span(16.633, 21.3)]
    assert [(one.start, one.end) for one in short] == [(5.2, pytest.approx(7.1))]


@pytest.mark.parametrize(
    ("reason", "frames"),
    {
        "black borders": np.pad(GOOD[:, 30:-30], ((0, 0), (30, 30), (0, 0), (0, 0))),
        "too dark": GOOD // 12,
        "too bright": 255 - GOOD // 12,
        "blurred": np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in GOOD]),
        "still": np.repeat(GOOD[:1], 24, axis=0),
        "shaky": np.stack(scene(1, 24, speed=0, shake=8)),
    }.items(),
)
def test_what_is_wrong_with_a_clip_is_said(reason, frames):
    fault = quality.fault(quality.measure(np.ascontiguousarray(frames), 8.0), quality.QualityConfig())
    assert fault
    assert fault[0] == reason


def test_nothing_is_wrong_with_a_good_clip_and_its_motion_is_as_made():
    measures = quality.measure(GOOD, 8.0)
    assert quality.fault(measures, quality.QualityConfig()) is None
    # 3 pixels a frame, of a diagonal of 400.
    assert measures.motion == pytest.approx(3 * 8 / 400, rel=0.15)
    assert measures.shake < 0.01
    assert measures.border == 0


def _hashed(name: str, frames: np.ndarray, pixels: int = 100) -> duplicates.Hashed:
    return duplicates.Hashed(name, duplicates.fingerprint(frames), pixels)


@pytest.fixture(scope="module")
def alike():
    """A clip, the same smaller, noisier and brighter, and others."""
    rng = np.random.default_rng(0)
    small = np.stack([cv2.resize(frame, (192, 144), interpolation=cv2.INTER_AREA) for frame in GOOD])
    noisy = np.clip(small * 0.9 + 20 + rng.normal(0, 4, small.shape), 0, 255).astype(np.uint8)
    others = [_hashed(f"other{seed}", np.stack(scene(seed, 24)), 50) for seed in range(2, 12)]
    return [_hashed("a", small), _hashed("b", GOOD, 300), _hashed("c", noisy), *others]


def test_of_clips_that_show_the_same_the_largest_stays_in_whatever_order_they_come(alike):
    for order in (alike, alike[::-1], alike[3:] + alike[:3]):
        assert duplicates.duplicates(order, duplicates.DuplicateConfig()) == {"a": "b", "c": "b"}


def test_duplicates_can_be_kept(alike):
    assert duplicates.duplicates(alike, duplicates.DuplicateConfig(most_bits=-1)) == {}


def test_no_duplicate_is_missed_that_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, (30, 192))
    rows = [base[i % 30] ^ (np.arange(192) < 0) for i in range(120)]
    for row in rows:
        row[rng.choice(192, rng.integers(0, 9), replace=False)] ^= 1
    hashes = [duplicates.Hashed(f"{i:03d}", np.packbits(row).tobytes().hex(), 1) for i, row in enumerate(rows)]
    kept: list[int] = []
    gone = {}
    for i, row in enumerate(rows):
        like = [j for j in kept if np.sum(rows[j] != row) <= 11]
        kept += [] if like else [i]
        gone |= {f"{i:03d}": f"{like[0]:03d}"} if like else {}
    assert len(gone) > 60
    assert duplicates.duplicates(hashes, duplicates.DuplicateConfig(most_bits=11)) == gone


def test_videos_are_found_by_a_pattern_with_the_captions_beside_them(tmp_path):
    for name in ("b.mp4", "sub/a.mp4", "sub/a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(" A dog.\nIt runs. ")
    found = sources.matching(f"{tmp_path}/**/*.mp4")
    assert [(one.name, one.caption) for one in found] == [("b.mp4", None), ("sub/a.mp4", "A dog. It runs.")]


LISTS = {
    "a.csv": 'video,caption,prompt\nb.mp4,"A dog, it runs.",a dog\na.mp4,A cat.,\n',
    "a.jsonl": '{"video": "b.mp4", "caption": "A dog, it runs.", "prompt": "a dog"}\n\n'
    '{"video": "a.mp4", "caption": "A cat."}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_names_videos_with_captions_and_prompts(tmp_path, name):
    (tmp_path / name).write_text(LISTS[name])
    found = [(one.name, one.caption, one.prompt) for one in sources.listed(tmp_path / name)]
    assert found == [("a.mp4", "A cat.", None), ("b.mp4", "A dog, it runs.", "a dog")]


WRONG = {
    ("a.csv", "video,caption\na.mp4\n"): "a.csv:2: has not as many values as the first line has titles",
    ("a.csv", "video,text\na.mp4,x\n"): "a.csv:2: 'text' is no field of a list",
    ("a.csv", "video\n"): "a.csv: holds no video",
    ("a.jsonl", '{"video": "a.mp4"}\n{"video": 3}\n'): "a.jsonl:2: video is 3; it must be a text",
    ("a.jsonl", "[1]\n"): "a.jsonl:1: must be a JSON object in braces",
    ("a.jsonl", '{"caption": "x"}\n'): "a.jsonl:1: video is ''; it must be the name of a file",
    ("a.jsonl", '{"video": "a"}\n{"video": "./a"}\n'): "a.jsonl:2: ./a is there twice; name each video once",
    ("a.jsonl", '{"video": "../a.mp4"}\n'): "all videos must lie below the folder of their list",
    ("a.txt", "a.mp4\n"): "a list of videos and captions is a .csv or a .jsonl file",
}


@pytest.mark.parametrize(("file", "why"), WRONG.items(), ids=[why[:30] for why in WRONG.values()])
def test_what_is_wrong_with_a_list_is_said_with_its_line(tmp_path, file, why):
    (tmp_path / file[0]).write_text(file[1])
    with pytest.raises(InputError) as error:
        sources.listed(tmp_path / file[0])
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"shots": {"longest": 3, "shortest": 2}}', "shortest must be above 0 and at most half of longest"),
        ('{"quality": {"blur": 3}}', "quality.blur does not exist"),
        ('{"duplicates": {"most_bits": 20}}', "most_bits is 20; it must be from -1 to 11"),
    ],
)
def test_what_is_wrong_with_options_is_said_with_the_field(tmp_path, text, why):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_config(Path(tmp_path / "options.json"))
    assert why in str(error.value)
