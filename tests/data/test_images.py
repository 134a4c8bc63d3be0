import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from cinema_jax.data.images import MAX_ASPECT_RATIO, cropped, fitted, letterbox, on_white, read_image, read_mask
from cinema_jax.errors import InputError

RED = (200, 30, 40)


def quarters(height=20, width=30) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = RED
    image[height // 2 :, width // 2 :] = (10, 200, 250)
    return image


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "gif"])
def test_lossless_formats_give_their_pixels(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(quarters()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    picture = read_image(path)
    assert (picture.image == quarters()).all()
    assert picture.mask is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("image.png" if mode in ("1", "L", "P", "RGB") else "image.tiff")
    image = Image.fromarray(quarters()).convert(mode)
    if mode == "HSV":
        image = image.convert("RGB")
    # Pillow 12.3 cannot read the uncompressed YCbCr that it writes.
    image.save(path, compression="tiff_lzw" if path.suffix == ".tiff" else None)
    picture = read_image(path)
    assert picture.mask is None
    assert np.abs(picture.image.astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_the_mask(tmp_path, mode):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[5:15, 5:15], alpha[8, 8] = 255, 100
    image = Image.fromarray(quarters()).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "image.png")
    picture = read_image(tmp_path / "image.png")
    assert picture.mask is not None
    assert (picture.mask == alpha).all()


def test_transparent_palette_entries_are_outside(tmp_path):
    image = Image.fromarray(quarters()).quantize(8)
    outside = np.asarray(image) == np.asarray(image)[0, 0]
    image.save(tmp_path / "image.png", transparency=int(np.asarray(image)[0, 0]))
    picture = read_image(tmp_path / "image.png")
    assert picture.mask is not None
    assert ((picture.mask == 0) == outside).all()


def test_alpha_that_hides_nothing_is_no_mask_and_one_that_hides_all_is_refused(tmp_path):
    Image.fromarray(quarters()).convert("RGBA").save(tmp_path / "opaque.png")
    assert read_image(tmp_path / "opaque.png").mask is None
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    with pytest.raises(InputError, match="transparent everywhere"):
        read_image(tmp_path / "clear.png")


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png").image
    assert (image[..., 0] == np.round(values / 257)).all()
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="floating-point"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_camera_was_held(tmp_path, orientation):
    upright = quarters()
    turn = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turn(upright))).save(tmp_path / "photo.png", exif=exif)
    assert (read_image(tmp_path / "photo.png").image == upright).all()


def test_colour_profiles_are_converted_to_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    Image.fromarray(quarters()).save(tmp_path / "wrong.png", icc_profile=lab.tobytes())
    assert (read_image(tmp_path / "wrong.png").image == quarters()).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.fromarray(quarters()).save(tmp_path / "right.png", icc_profile=srgb.tobytes())
    assert np.abs(read_image(tmp_path / "right.png").image.astype(int) - quarters()).max() <= 1
    Image.fromarray(quarters()).save(tmp_path / "junk.png", icc_profile=b"junk")
    assert (read_image(tmp_path / "junk.png").image == quarters()).all()


def broken_files(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for suffix in ("png", "jpg", "webp", "gif", "tiff", "bmp"):
        noise.save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "folder.png").mkdir()
    return [*sorted(tmp_path.glob("cut.*")), *(tmp_path / f"{n}.png" for n in ("empty", "text", "folder", "missing"))]


def test_broken_files_are_named_in_one_sentence(tmp_path):
    files = broken_files(tmp_path)
    assert len(files) == 10
    for path in files:
        with pytest.raises(InputError, match=path.name) as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_sizes_out_of_bounds_are_refused_with_the_size(tmp_path):
    Image.new("RGB", (420, 20)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match=rf"420x20.*at most {MAX_ASPECT_RATIO:.0f} times"):
        read_image(tmp_path / "strip.png")
    Image.new("RGB", (400, 20)).save(tmp_path / "strip.png")
    assert read_image(tmp_path / "strip.png").image.shape == (20, 400, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [9_000, 1_000])
def test_images_beyond_the_limit_of_pillow_are_refused(tmp_path, monkeypatch, limit):
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=rf"bomb\.png: the image is too large.* {limit} pixels"):
        read_image(tmp_path / "bomb.png")


def test_letterbox_shrinks_to_fit_and_centres_on_white():
    view = letterbox(np.full((100, 50, 3), RED, np.uint8), None, 20, 40)
    assert view.shape == (20, 40, 3)
    assert (view[:, 15:25] == RED).all()
    assert (view[:, :15] == 255).all()
    assert (view[:, 25:] == 255).all()


def test_letterbox_never_enlarges_and_whitens_outside_the_mask():
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 1:5] = 255
    view = letterbox(np.full((4, 6, 3), RED, np.uint8), mask, 20, 20)
    inside = (view == RED).all(-1)
    assert inside.sum() == mask.sum() // 255
    assert (view[~inside] == 255).all()
    assert inside[9:11, 8:12].all()


def test_letterbox_shows_the_box_around_the_mask():
    mask = np.zeros((200, 300), np.uint8)
    mask[150:190, 20:100] = 255
    view = letterbox(np.full((200, 300, 3), RED, np.uint8), mask, 40, 40)
    assert (view[12:28] == RED).all()
    assert (view[:8] == 255).all()
    assert (view[-8:] == 255).all()


def test_letterbox_of_an_empty_mask_is_white():
    assert (letterbox(np.full((20, 30, 3), RED, np.uint8), np.zeros((20, 30), np.uint8), 16, 16) == 255).all()


def test_a_picture_is_enlarged_to_fit_but_at_most_three_times():
    view = fitted(np.full((10, 20, 3), RED, np.uint8), None, 40, 40)
    assert (view[10:30] == RED).all()
    assert (view[:10] == 255).all()
    small = fitted(np.full((4, 4, 3), RED, np.uint8), None, 40, 40)
    assert (small == RED).all(-1).sum() == 12 * 12


def test_a_crop_has_a_margin_of_five_percent_as_far_as_the_picture_goes():
    mask = np.zeros((200, 300), np.uint8)
    mask[100:200, 20:120] = 255
    image = np.indices((200, 300)).sum(0)[..., None].repeat(3, -1).astype(np.uint8)
    crop, inside = cropped(image, mask)
    np.testing.assert_array_equal(crop, image[95:200, 15:125])
    np.testing.assert_array_equal(inside, mask[95:200, 15:125])
    whole, nothing = cropped(image, np.zeros_like(mask))
    assert whole.shape == image.shape
    assert not nothing.any()
    assert cropped(image, None)[1] is None


def test_letterbox_averages_and_does_not_pick_pixels():
    board = np.indices((512, 512)).sum(0) % 2 * np.uint8(255)
    view = letterbox(np.repeat(board[..., None], 3, -1).astype(np.uint8), None, 64, 64)
    assert np.abs(view.astype(int) - 127).max() <= 3


def test_soft_edges_blend_into_white():
    image = np.zeros((1, 3, 3), np.uint8)
    assert on_white(image, np.array([[0, 128, 255]], np.uint8))[0, :, 0].tolist() == [255, 127, 0]


def test_masks_are_read_from_grey_or_alpha(tmp_path):
    grey = np.zeros((8, 8), np.uint8)
    grey[2:5] = 255
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([np.zeros((8, 8, 3), np.uint8), grey])).save(tmp_path / "alpha.png")
    assert (read_mask(tmp_path / "grey.png") == grey).all()
    assert (read_mask(tmp_path / "alpha.png") == grey).all()
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match="black everywhere"):
        read_mask(tmp_path / "black.png")


# A program that draws nothing: what matters is whether anybody runs it.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\n/x { x } def\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["x.png", "x.eps", "x"])
def test_no_picture_starts_a_program(tmp_path, monkeypatch, name):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program is started"))
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match="not an image that can be read"):
        read_image(tmp_path / name)
    # What other libraries of this process open does not either.
    with Image.open(tmp_path / name) as image, pytest.raises(OSError, match="Ghostscript"):
        image.load()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="pipe or device"):
        read_image(tmp_path / "pipe.png")
