"""`cinema_jax.Pipeline`: what it makes of prompts and pictures, and what it says of mistakes; and docs/python.md."""

import base64
import html
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import process_environment, random_run

import cinema_jax
from cinema_jax.data.example import Reference
from cinema_jax.data.images import read_image
from cinema_jax.data.video import probe
from cinema_jax.errors import InputError
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler

ROOT = Path(__file__).parents[1]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
PIXELS[..., 3] = np.where(PIXELS[..., 3] > 90, 255, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, and the untrained networks of a run."""
    folder = tmp_path_factory.mktemp("python")
    Image.fromarray(PIXELS).save(folder / "cut.png")
    Image.fromarray(PIXELS[..., :3]).save(folder / "whole.png")
    Image.fromarray(PIXELS[..., 0]).save(folder / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS[..., :3]).save(folder / "turned.jpg", exif=exif)
    random_run(folder / "run")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return cinema_jax.Pipeline.from_pretrained(folder / "run")


@pytest.fixture(scope="module")
def video(pipe, folder):
    return pipe("the bird jumps up", [folder / "cut.png"], seed=3, steps=2, guidance_text=3.0, progress=False)


def test_a_call_is_one_request_of_the_sampler(video, folder):
    run, sampler = load_sampler(folder / "run")
    picture = read_image(folder / "cut.png")
    request = Request("the bird jumps up", (Reference(picture.image, picture.mask, "0"),), 3)
    expected = sampler([request], sampler.settings(steps=2, guidance_text=3.0))[0]
    np.testing.assert_array_equal(video.frames, expected)
    assert (video.fps, video.prompt, video.seed) == (run.config.data.fps, "the bird jumps up", 3)


def test_a_list_of_prompts_makes_the_videos_of_each(pipe, video, folder):
    prompts, pictures = ["it sleeps", "the bird jumps up"], [[folder / "grey.png"], [folder / "cut.png"]]
    first, second = pipe(prompts, pictures, seed=[4, 3], steps=2, guidance_text=3.0, progress=False)
    assert np.abs(second.frames.astype(int) - video.frames).max() <= 1
    assert np.abs(first.frames.astype(int) - video.frames).max() > 1
    assert (first.prompt, first.seed) == ("it sleeps", 4)


def pictures_of(pipe, *pictures):
    [request] = pipe.requests("x", pictures)
    return [(one.image, one.mask) for one in request.references]


def test_a_picture_is_the_same_as_a_file_of_pillow_and_as_an_array(pipe, folder):
    for name, array in (("cut.png", PIXELS), ("whole.png", PIXELS[..., :3]), ("grey.png", PIXELS[..., 0])):
        file = folder / name
        expected, *others = pictures_of(pipe, str(file), file, Image.open(file), array, np.asfortranarray(array))
        assert (expected[1] is not None) == (name == "cut.png")
        for found in others:
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(pictures_of(pipe, PIXELS)[0][1], PIXELS[..., 3])


def test_a_picture_of_pillow_is_turned_upright(pipe, folder):
    of_file, of_pillow = pictures_of(pipe, folder / "turned.jpg", Image.open(folder / "turned.jpg"))
    assert of_file[0].shape == (56, 40, 3)
    np.testing.assert_array_equal(of_pillow[0], of_file[0])


def test_progress_is_told_of_every_step_and_may_end_the_sampling(pipe, folder):
    told = []
    pipe("x", [folder / "cut.png"], steps=3, progress=lambda done, count: told.append((done, count)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]

    def stop(done, count):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("x", [folder / "cut.png"], steps=3, progress=stop)


def test_a_video_is_saved_as_it_is_or_enlarged_and_repeated(video, tmp_path):
    assert video.save(tmp_path / "as_it_is") == (1, 1)
    frames = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "as_it_is").iterdir())]
    np.testing.assert_array_equal(frames, video.frames)
    count, height, width, _ = video.frames.shape
    assert video.save(tmp_path / "a.mp4", scale=2, loop=3) == (2, 3)
    found = probe(tmp_path / "a.mp4")
    assert (found.width, found.height) == (2 * width, 2 * height)
    assert video.save(tmp_path / "b.mp4") == (256 // height, -(-4 * int(video.fps) // count))


def test_a_notebook_shows_the_video_itself(video, tmp_path):
    shown = video._repr_html_()
    data = re.search(r'src="data:video/mp4;base64,([^"]+)"', shown)[1]
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(data))
    assert probe(tmp_path / "shown.mp4").width == 256
    assert f'aria-label="{html.escape(video.prompt)}"' in shown
    assert len(repr(video)) < 100


GOOD = [PIXELS]
MISTAKES = {
    "no pictures": ("x", [], {}, "there are no references; give at least one picture"),
    "one picture": ("x", "cut.png", {}, r"references is one picture; give a list of pictures, \[picture\]"),
    "an array as a list": ("x", PIXELS, {}, "references is one picture"),
    "nothing": ("x", None, {}, "references is of type NoneType; it must be a list of pictures"),
    "a list in a list": ("x", [GOOD], {}, r"references\[0\] is a list; for one prompt, give a plain list"),
    "a plain list for prompts": (
        ["x", "y"],
        [PIXELS, PIXELS],
        {},
        r"references\[0\] is a picture; for several prompts",
    ),
    "too few lists": (["x", "y"], [GOOD], {}, "there are 2 prompts, but the list references is 1 long"),
    "too many seeds": (["x"], [GOOD], {"seed": [1, 2]}, "the list seed is 2 long"),
    "several seeds": ("x", GOOD, {"seed": [1, 2]}, r"seed is \[1, 2\]; it must be a whole number"),
    "a negative seed": (["x", "y"], [GOOD, GOOD], {"seed": [0, -1]}, r"seed\[1\] is -1; it must be from 0 to"),
    "no text": (3, GOOD, {}, "prompt is of type int; it must be text, or a list of texts"),
    "no prompts": ([], [], {}, "prompt is an empty list"),
    "an empty prompt": (["x", " "], [GOOD, GOOD], {}, r"the prompt\[1\] is empty; say what happens"),
    "half of a character": ("x\udce9", GOOD, {}, "prompt holds half of a character"),
    "an address": (
        "x",
        ["https://example.org/a.png"],
        {},
        "a.png: nothing is fetched from addresses; save the picture",
    ),
    "no file": ("x", ["none.png"], {}, "none.png: no such image file"),
    "floats": ("x", [PIXELS / 255], {}, r"references\[0\] is an array of float64; it must be of uint8"),
    "channels first": ("x", [PIXELS.T], {}, r"array of shape \[4, 56, 40\]; accepted is height x width x 3"),
    "no pixels": ("x", [Image.new("RGB", (0, 0))], {}, r"references\[0\] has no pixels"),
    "wholly transparent": (
        "x",
        [Image.new("RGBA", (9, 9))],
        {},
        r"references\[0\]: the image is transparent everywhere",
    ),
    "bytes": ("x", [b"abc"], {}, r"references\[0\] is of type bytes; accepted is a file's name, a picture of Pillow"),
    "too many": ("x", GOOD * 4, {}, "4 references were given; at most 3"),
    "a wrong keyword": ("x", GOOD, {"guidance": 3}, "guidance is no option of a video; did you mean guidance_text"),
    "a letter left out": ("x", [], {"reference": GOOD}, "reference is no option of a video; did you mean references"),
    "another's keyword": ("x", GOOD, {"num_inference_steps": 3}, "there are steps, solver, guidance_text"),
    "half a step": ("x", GOOD, {"steps": 1.5}, "steps is 1.5; it must be of type int"),
    "no steps": ("x", GOOD, {"steps": 0}, "steps is 0; it must be 1 or more"),
    "no number": ("x", GOOD, {"guidance_text": float("nan")}, "guidance_text is nan; it must be a finite number"),
    "no solver": ("x", GOOD, {"solver": "heun"}, "solver is 'heun'; accepted: 'unipc'"),
    "a size": ("x", GOOD, {"frames": 6}, "frames is 6; the nearest that the model can hold is 5"),
    "no progress": ("x", GOOD, {"progress": "bar"}, "progress is 'bar'; it must be True, False or a function"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(name, pipe):
    prompt, pictures, options, sentence = MISTAKES[name]
    with pytest.raises(cinema_jax.InputError, match=sentence) as caught:
        pipe(prompt, pictures, **{"progress": False} | options)
    assert "\n" not in str(caught.value)


def test_a_part_that_is_not_loaded_is_named(pipe):
    with pytest.raises(InputError, match="the t5 is not loaded; loaded are vae, mllm, aligner, dit"):
        pipe.cinema.encode_caption(pipe.params, jnp.zeros((1, 8), jnp.int32))


def test_importing_the_package_loads_nothing_and_its_names_are_there():
    code = "import sys, cinema_jax; assert not {'jax', 'numpy', 'absl'} & {*sys.modules}; cinema_jax.Pipelin"
    done = subprocess.run([sys.executable, "-c", code], env=process_environment(), capture_output=True, text=True)
    assert "AttributeError: module 'cinema_jax' has no attribute 'Pipelin'. Did you mean: 'Pipeline'?" in done.stderr
    assert {*cinema_jax.__all__} <= {*dir(cinema_jax)}
    assert all(getattr(cinema_jax, name) is not None for name in cinema_jax.__all__)


def test_every_line_of_the_document_runs(tmp_path, monkeypatch, capsys):
    """With the packaged demo; what a line says it prints, it prints."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
        printed = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == printed
    assert (tmp_path / "out.mp4").is_file()
    assert np.isfinite(names["losses"]).all()
    assert names["losses"][-1] < names["losses"][0]
