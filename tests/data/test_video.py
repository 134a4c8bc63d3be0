import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import Colorspace
from clips import index_of, write_clip, write_images
from PIL import Image

from cinema_jax.data import hdr
from cinema_jax.data.output import check_output, visible
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
    for name in ("sound", "cover"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            if name == "cover":
                picture = container.add_stream("mjpeg", width=32, height=32, pix_fmt="yuvj420p")
                picture.disposition = Disposition.attached_pic
                container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    cases = {"gone": "no such video", "empty": "0 bytes", "text": "cannot be decoded"}
    cases |= dict.fromkeys(("sound", "cover"), "no video stream")
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


def test_a_recording_cut_in_its_middle_is_read_from_its_first_key_frame(tmp_path):
    whole, cut, headless = (tmp_path / f"{name}.ts" for name in ("whole", "cut", "headless"))
    write_clip(whole)  # A key frame every 5.
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        second, third = [packet.pos for packet in packets if packet.is_keyframe][1:3]
    content = whole.read_bytes()
    cut.write_bytes(content[(second + third) // 2 // 188 * 188 :])
    assert probe(cut).frames == 10
    assert indices(cut, 10, 10) == list(range(10, 20))
    assert indices(cut, 4, 10, start=0.6) == [16, 17, 18, 19]
    assert index_of(frame_at(cut, 2)) == 12
    # Without any key frame there is nothing to show.
    headless.write_bytes(content[second + 188 * 3 : third])
    with pytest.raises(InputError, match=f"{headless}: "):
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


@pytest.mark.parametrize("fps", [8, 12.5, 24])
def test_a_video_plays_as_fast_as_asked(tmp_path, fps):
    write_video(tmp_path / "a.mp4", moving(), fps)
    assert (probe(tmp_path / "a.mp4").frames, probe(tmp_path / "a.mp4").fps) == (10, fps)
    write_video(tmp_path / "a.gif", moving(), fps)
    with Image.open(tmp_path / "a.gif") as image:
        # Its clock ticks in hundredths of a second.
        assert image.info["duration"] == pytest.approx(1000 / fps, abs=10)


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


@pytest.mark.parametrize(
    ("name", "size", "frames", "asked", "shape"),
    [
        ("small.mp4", (64, 64), 9, {}, (36, 256, 256, 3)),
        ("small.gif", (64, 96), 9, {}, (9, 256, 384, 3)),
        ("small.png", (64, 64), 9, {}, (9, 64, 64, 3)),
        ("large.mp4", (480, 720), 49, {}, (49, 480, 720, 3)),
        ("small.mp4", (64, 64), 9, {"scale": 1, "loop": 1}, (9, 64, 64, 3)),
        ("small.gif", (64, 64), 9, {"scale": 2, "loop": 3}, (27, 128, 128, 3)),
    ],
)
def test_small_and_short_videos_are_enlarged_and_repeated(name, size, frames, asked, shape):
    video = np.zeros((frames, *size, 3), np.uint8)
    assert visible(video, 8, name, **asked)[0].shape == shape


def test_an_enlarged_pixel_is_a_square_and_a_repeated_video_starts_anew():
    video = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    shown = visible(video, 8, "a.mp4", scale=3, loop=2)[0]
    np.testing.assert_array_equal(shown[2:, ::3, ::3], video)
    np.testing.assert_array_equal(shown[:, 0, 0], shown[:, 2, 2])


def test_the_examples_are_small_cutouts():
    files = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
    assert len(files) == 4
    assert sum(file.stat().st_size for file in files) < 100_000
    for file in files:
        alpha = np.asarray(Image.open(file))[..., 3]
        assert 0.1 < (alpha > 127).mean() < 0.7, file


@pytest.mark.parametrize("curve", [hdr.PQ, hdr.HLG])
def test_greys_of_high_dynamic_range_are_those_of_the_same_light_on_a_standard_display(tmp_path, curve):
    """Graded as ITU-R BT.2408 places standard range in high: white at 203 cd/m^2, shown with a gamma of 2.4."""
    greys = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    write_hdr(tmp_path / "clip.mp4", [(level_of(203 * grey**2.4, curve), 512, 512) for grey in greys], curve)
    pixels = frame_at(tmp_path / "clip.mp4", 0)[32, 32::64]
    np.testing.assert_allclose(pixels, np.repeat(255 * greys[:, None], 3, axis=1), atol=1.5)


def test_colours_of_high_dynamic_range_keep_their_saturation():
    """Primaries of BT.709 as a display of BT.2020 shows them (ITU-R BT.2087), at half of reference white."""
    to_bt2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.2, 0.5, 0.9]])
    light = 0.5 * 203 * colours @ to_bt2020.T
    levels = [[(level_of(x, hdr.PQ) - 64) / 876 for x in row] for row in light]
    found = hdr.to_sdr(np.uint16(65280 * np.array(levels)), hdr.PQ)
    # As light: near black a level of 10 bits is many of 8 bits.
    np.testing.assert_allclose((found / 255) ** 2.4, 0.5 * colours, atol=0.01)


def level_of(light: float, curve: int) -> int:
    """The level, in 10 bits of narrow range, that means so many cd/m^2 of grey (the inverse formulas of BT.2100)."""
    if curve == hdr.PQ:
        power = (max(light, 0) / 10_000) ** 0.1593017578125
        level = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        scene = (light / 1000) ** (1 / 1.2)
        level = (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
    return 64 + round(876 * level)


def write_hdr(path, patches: list[tuple[int, int, int]], curve: int) -> None:
    """Patches of 64 x 64 pixels side by side, each a triple of 10-bit levels, tagged as BT.2020."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options={"crf": "4", "x265-params": "log-level=error"})
        stream.width, stream.height, stream.pix_fmt = 64 * len(patches), 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, curve, 1
        frame = av.VideoFrame(stream.width, 64, "yuv420p10le")
        for i, plane in enumerate(frame.planes):
            row = np.repeat([patch[i] for patch in patches], 32 if i else 64).astype(np.uint16)
            rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            rows[:, : len(row)] = row
            plane.update(rows.tobytes())
        frame.colorspace, frame.color_range = 9, 1
        for i in range(6):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


LISTS = {
    "a playlist": ("x.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"),
    "a list of files": ("x.ffconcat", "ffconcat version 1.0\nfile {other}\n"),
    "a session": ("x.sdp", "v=0\nc=IN IP4 127.0.0.1\nm=video 4000 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    "a drawing": (
        "x.svg",
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{other}"/></svg>',
    ),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("renamed", [False, True])
def test_no_file_leads_to_another_one(tmp_path, kind, renamed):
    write_clip(tmp_path / "other.mp4")
    name, text = LISTS[kind]
    path = tmp_path / ("x.mp4" if renamed else name)
    path.write_text(text.format(other=tmp_path / "other.mp4"))
    with pytest.raises(InputError, match="cannot be decoded"):
        probe(path)


def test_a_name_is_a_file_s_and_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "other.mp4")
    for name in ("concat:other.mp4", "file:other.mp4", "http://127.0.0.1:9/x.mp4", "pipe:0", "-"):
        with pytest.raises(InputError, match="no such video file"):
            probe(name)
    os.rename("other.mp4", "subfile,,start,1:other.mp4")
    assert probe("subfile,,start,1:other.mp4").frames == 20


def test_a_title_in_another_encoding_is_no_obstacle(tmp_path):
    write_clip(tmp_path / "x.mkv")
    data = (tmp_path / "x.mkv").read_bytes()
    assert b"Lavf" in data
    (tmp_path / "x.mkv").write_bytes(data.replace(b"Lavf", b"L\xe9vf"))
    assert probe(tmp_path / "x.mkv").frames == 20


@pytest.mark.parametrize(
    ("header", "message"),
    [("W64 H48 F8:1 Ip A1:1000", "at most 20 times the other"), ("W100000 H100000 F8:1 Ip A1:1", r"x\.y4m: ")],
)
def test_frames_that_nobody_can_look_at_are_refused(tmp_path, header, message):
    (tmp_path / "x.y4m").write_bytes(f"YUV4MPEG2 {header} C420jpeg\nFRAME\n".encode() + bytes(64 * 48 * 3 // 2))
    with pytest.raises(InputError, match=message):
        probe(tmp_path / "x.y4m")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="pipe or device"):
        probe(tmp_path / "pipe.mp4")
