import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from clips import index_of, write_clip, write_images
from PIL import Image

from cinema_jax.data.output import check_output
from cinema_jax.data.video import frame_at, probe, read_frames, write_video
from cinema_jax.errors import InputError


def indices(path, count, fps, start=0.0):
    return [index_of(frame) for frame in read_frames(path, count, fps, 16, 16, start)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".ts", ".mov"])
def test_every_container_gives_the_frames_shown_at_each_moment(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_clip(path, frames=20, fps=10)
    assert indices(path, 20, 10) == list(range(20))
    assert indices(path, 5, 5) == [0, 2, 4, 6, 8]
    assert indices(path, 6, 20) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".ts"])
def test_a_start_in_the_middle_reads_the_same_frames_as_reading_from_the_beginning(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_clip(path, frames=25, fps=10, gop=8)
    for start in (0.1, 0.75, 1.3, 2.0):
        first = int(start * 10 + 1e-6)
        assert indices(path, 4, 10, start) == list(range(first, first + 4))


def test_thirty_frames_a_second_in_whole_milliseconds_do_not_repeat(tmp_path):
    path = tmp_path / "clip.mkv"
    write_clip(path, frames=28, fps=30)
    assert indices(path, 28, 30) == list(range(28))


def test_variable_frame_rate_is_read_by_time_stamps(tmp_path):
    path = tmp_path / "clip.mp4"
    stamps = [0, 100, 130, 500, 510, 520, 1000, 1100]
    write_clip(path, frames=8, fps=10, stamps=stamps)
    moments = [0, 125, 250, 375, 500, 625, 750, 875, 1000]
    shown = [max(i for i, stamp in enumerate(stamps) if stamp <= moment) for moment in moments]
    assert indices(path, 9, 8) == shown
    assert [index_of(frame_at(path, i)) for i in range(8)] == list(range(8))


def test_a_stream_without_time_stamps_is_counted(tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=12, fps=10)
    raw = tmp_path / "clip.h264"
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(raw), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert [index_of(frame_at(raw, i)) for i in (0, 3, 11)] == [0, 3, 11]
    assert probe(raw).frames == 12
    assert len(read_frames(raw, 3, 5, 16, 16)) == 3


def corners() -> np.ndarray:
    """60 wide, 40 high: red, green, blue and white quarters, row by row."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30], image[20:, 30:] = (
        (200, 0, 0),
        (0, 200, 0),
        (0, 0, 200),
        (220, 220, 220),
    )
    return image


def rotated(path, degrees: int):
    """Rewrites an MP4's display matrix so that players turn it clockwise by so many degrees."""
    data = bytearray(path.read_bytes())
    unit = 1 << 16
    a, b, c, d = {90: (0, unit, -unit, 0), 180: (-unit, 0, 0, -unit), 270: (0, -unit, unit, 0)}[degrees]
    at = data.index(b"tkhd")
    # After the type: version and flags, 5 words (version 0), 2 reserved words, 4 half words, then the matrix.
    struct.pack_into(">9i", data, at + 4 + 4 + 20 + 8 + 8, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_turns_frames_upright(tmp_path, degrees):
    path = tmp_path / "clip.mp4"
    write_images(path, [corners()] * 4, 10)
    rotated(path, degrees)
    expected = np.rot90(corners(), -degrees // 90)
    assert np.abs(frame_at(path, 1).astype(int) - expected).mean() < 6
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    read = read_frames(path, 2, 10, *expected.shape[:2])[0]
    assert np.abs(read.astype(int) - expected).mean() < 6


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    path = tmp_path / "clip.mp4"
    write_images(path, [corners()] * 3, 10, aspect=Fraction(2))
    info = probe(path)
    assert (info.height, info.width) == (40, 120)
    assert frame_at(path, 0).shape == (40, 120, 3)


def test_the_centre_is_cropped_with_the_aspect_kept(tmp_path):
    path = tmp_path / "clip.mp4"
    wide = np.full((32, 96, 3), 30, np.uint8)
    wide[:, 32:64] = 220
    write_images(path, [wide] * 3, 10)
    assert (read_frames(path, 2, 10, 16, 16) > 150).all()
    whole = read_frames(path, 1, 10, 16, 48)[0].mean(-1)
    assert (whole[:, 18:30] > 190).all()
    assert (whole[:, :14] < 60).all()
    assert (whole[:, 34:] < 60).all()


def test_one_frame_videos_are_read_and_too_short_ones_say_what_is_needed(tmp_path):
    path = tmp_path / "one.mp4"
    write_clip(path, frames=1, fps=10)
    assert indices(path, 1, 10) == [0]
    with pytest.raises(InputError, match=r"one\.mp4: the video ends at 0\.10 s, but .* of 9 frames at 8 .* 1\.00 s"):
        read_frames(path, 9, 8, 16, 16)
    with pytest.raises(InputError, match=r"there is no frame 1; the video has 1 frames"):
        frame_at(path, 1)


def test_files_that_are_no_videos_are_named_in_one_sentence(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video here\n" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    cases = {"gone": "no such video", "empty": "0 bytes", "text": "cannot be decoded", "sound": "no video stream"}
    for name, sentence in cases.items():
        for read in (probe, lambda path: read_frames(path, 1, 8, 16, 16), lambda path: frame_at(path, 3)):
            with pytest.raises(InputError, match=rf"{name}\.mp4: .*{sentence}") as caught:
                read(tmp_path / f"{name}.mp4")
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="this is a folder"):
        probe(tmp_path)


def test_a_file_cut_short_is_an_input_error_and_its_sound_part_is_read(tmp_path):
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    write_images(whole, list(noise), 10)
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    assert len(read_frames(cut, 8, 10, 16, 16)) == 8
    with pytest.raises(InputError, match=r"cut\.mkv"):
        read_frames(cut, 40, 10, 16, 16)
    headless = tmp_path / "headless.mp4"
    write_images(headless, list(noise), 10)
    headless.write_bytes(headless.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"headless\.mp4: this video cannot be decoded"):
        probe(headless)


def moving(frames=10, height=48, width=64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([x * 3, y * 4, np.full_like(x, 20 * i)], -1) for i in range(frames)]).astype(np.uint8)


def test_mp4_is_h264_that_begins_with_its_index_and_keeps_colours(tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    frames = moving()
    write_video(path, frames, 8)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    info = probe(path)
    assert (info.frames, info.fps, info.height, info.width) == (10, 8.0, 48, 64)
    assert np.abs(read_frames(path, 10, 8, 48, 64).astype(int) - frames).mean() < 3
    flat = np.full((3, 32, 32, 3), (200, 30, 60), np.uint8)
    write_video(path, flat, 8)
    assert np.abs(read_frames(path, 3, 8, 32, 32).astype(int) - flat).max() <= 3
    assert [item.name for item in path.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("height", [480, 720])
@pytest.mark.parametrize("tagged", [True, False])
def test_colours_without_a_tag_are_read_by_the_height(tmp_path, height, tagged):
    colour, path = (40, 200, 60), tmp_path / "clip.mp4"
    matrix = Colorspace.ITU709 if height >= 720 or tagged else Colorspace.ITU601
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        if tagged:
            stream.codec_context.colorspace = int(matrix)
        frame = av.VideoFrame.from_ndarray(np.full((height, 64, 3), colour, np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix)))
        container.mux(stream.encode(None))
    assert np.abs(frame_at(path, 0).astype(int) - colour).max() <= 2


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    write_video(tmp_path / "odd.mp4", moving(height=47, width=63), 8)
    info = probe(tmp_path / "odd.mp4")
    assert (info.height, info.width) == (48, 64)


def test_gif_keeps_size_length_and_colours_of_the_clip(tmp_path):
    path = tmp_path / "clip.gif"
    frames = np.stack(
        [np.full((31, 33, 3), colour, np.uint8) for colour in [(250, 10, 10), (10, 250, 10), (9, 9, 200)]]
    )
    write_video(path, frames, 8)
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (3, (33, 31), 0)
        total = 0
        for i in range(3):
            image.seek(i)
            total += image.info["duration"]
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frames[i]).max() <= 6
    assert total == 380
    with pytest.raises(InputError, match="at most 50"):
        write_video(path, frames, 60)


def test_png_frames_are_numbered_beside_the_name_or_in_a_new_folder(tmp_path):
    frames = moving(3)
    write_video(tmp_path / "a.png", frames, 8)
    write_video(tmp_path / "b", frames, 8)
    names = sorted(str(item.relative_to(tmp_path)) for item in tmp_path.rglob("*.png"))
    assert names == ["a_000.png", "a_001.png", "a_002.png", "b/000.png", "b/001.png", "b/002.png"]
    assert (np.asarray(Image.open(tmp_path / "b" / "002.png")) == frames[2]).all()
    for again in ("a.png", "b"):
        with pytest.raises(InputError, match=r"remove them first|not empty"):
            check_output(tmp_path / again)


def test_outputs_that_cannot_be_written_are_refused_before_sampling(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write '\.avi'; accepted are clip\.mp4, clip\.gif, clip\.png"):
        check_output(tmp_path / "x.avi")
    with pytest.raises(InputError, match="is a file and not a folder"):
        check_output(tmp_path / "file" / "x.mp4")
    with pytest.raises(InputError, match="a file of this name exists"):
        check_output(tmp_path / "file")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="this is a folder"):
        check_output(tmp_path / "folder.mp4")
    assert check_output(tmp_path / "new" / "x.mp4") == tmp_path / "new" / "x.mp4"
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("stop")

    monkeypatch.setattr("cinema_jax.data.output._palette", fail)
    with pytest.raises(RuntimeError, match="stop"):
        write_video(tmp_path / "clip.gif", moving(), 8)
    assert list(tmp_path.iterdir()) == []
