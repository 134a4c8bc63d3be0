"""What the web page does, without a browser."""

import dataclasses
import html
import shlex
import threading
from pathlib import Path

import gradio
import numpy as np
import pytest
from absl import flags
from PIL import Image
from tiny import random_run

from cinema_jax import generate
from cinema_jax.commands import usage
from cinema_jax.data.critters.examples import write_examples
from cinema_jax.data.images import letterbox, read_image
from cinema_jax.errors import InputError
from cinema_jax.sampling import references
from cinema_jax.sampling.pipeline import Pipeline
from cinema_jax.sampling.requests import Request
from cinema_jax.web.page import build
from cinema_jax.web.studio import Order, Report, Stopped, Studio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def studio(folder):
    checkpoint = str(random_run(folder / "run"))
    return Studio(Pipeline.from_pretrained(checkpoint), {"solver": "euler", "steps": None})


@pytest.fixture(scope="module")
def order(folder):
    pictures, prompt = write_examples(folder, 3)[1]
    return Order(
        tuple(pictures), prompt, "it's green", 3, {"guidance_text": 2.5, "guidance_reference": 1.5, "steps": 2}
    )


def test_the_command_makes_the_same_video(studio, order, folder, monkeypatch):
    studio.make(order, folder / "page.mp4", lambda report: None)
    monkeypatch.chdir(folder)
    python, m, module, *arguments = shlex.split(studio.command(order))
    assert (python, m, module) == ("python", "-m", "cinema_jax.generate")
    assert "--solver=euler" in arguments
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["generate", *map(usage.underscored, arguments)])
    generate.main()
    assert Path("out.mp4").read_bytes() == Path("page.mp4").read_bytes()


def told(studio, order, folder, **changes) -> list[Report]:
    found: list[Report] = []
    changed = dataclasses.replace(order, settings={**order.settings, **changes})
    studio.make(changed, folder / "told.mp4", found.append)
    return found


def test_a_program_that_is_not_compiled_yet_is_told_of_once(studio, order, folder):
    for expected in (["compiling", "sampling"], ["sampling", "sampling"]):
        found = told(studio, order, folder, guidance_text=1.0, guidance_reference=1.0)
        assert [report.phase for report in found[:2]] == expected


def test_every_step_is_told_of_and_then_the_decoding(studio, order, folder):
    studio.make(order, folder / "first.mp4", lambda report: None)
    found = told(studio, order, folder, steps=4)
    assert [(report.phase, report.done, report.count) for report in found] == [
        *(("sampling", done, 4) for done in range(5)),
        ("decoding", 4, 4),
    ]
    assert all(report.left is not None and report.left > 0 for report in found)


def test_steps_are_counted_when_the_device_has_computed_them(studio, order):
    waiting = []

    def counted(steps):
        for latents in steps:
            waiting.append(not latents.is_ready())
            yield latents

    request = Request(order.prompt, ())
    studio.pipeline.sampler([request], studio.settings(steps=30), counted)
    assert waiting == [False] * 30


def test_a_stopped_video_ends_before_its_next_step(studio, order, folder):
    stop, found = threading.Event(), []

    def tell(report):
        found.append(report.done)
        if report.done == 1:
            stop.set()

    with pytest.raises(Stopped):
        studio.make(order, folder / "stopped.mp4", tell, stop)
    assert found == [0, 1]
    assert not (folder / "stopped.mp4").exists()


@pytest.fixture(scope="module")
def called(studio, folder):
    """The page's functions by name, and a visitor."""
    page = build(studio, folder, [])
    return {block.name: block.fn for block in page.fns.values()}, gradio.Request(session_hash="visitor")


def asked(order, visitor, seed, videos=1, last=-1):
    return [*order.pictures], order.prompt, 2.5, 1.5, 2, seed, "", videos, last, visitor


def test_who_stops_while_waiting_gets_no_video_and_the_next_one_again(called, order):
    functions, visitor = called
    functions["begin"](visitor)
    functions["set"](visitor)
    assert "Stopped." in list(functions["make"](*asked(order, visitor, 0)))[-1][2]
    functions["set"](visitor)
    assert "Done in" in list(functions["make"](*asked(order, visitor, 0)))[-1][2]


def test_generate_waits_for_a_picture_a_prompt_and_the_last_video(called, order):
    functions, visitor = called

    def ready(files, prompt):
        return functions["ready"](files, prompt, visitor).interactive

    assert [ready(None, "it jumps"), ready([*order.pictures], " "), ready([*order.pictures], "it jumps")] == [
        False, False, True,
    ]  # fmt: skip
    functions["begin"](visitor)
    assert not ready([*order.pictures], "it jumps")


def test_without_a_seed_each_video_has_the_next_one(called, order):
    functions, visitor = called
    made = [told for told in functions["make"](*asked(order, visitor, None, videos=2)) if isinstance(told[0], str)]
    assert [seed for *_, seed in made] == [0, 1]
    assert "--seed=1" in made[1][1]
    *_, (_, line, _, seed) = functions["make"](*asked(order, visitor, None, last=1))
    assert seed == 2
    assert "--seed=2" in line


@pytest.mark.parametrize("videos", [0, 5])
def test_no_more_videos_are_made_at_a_time_than_the_page_offers(called, order, videos):
    functions, visitor = called
    [(*_, said, _)] = functions["make"](*asked(order, visitor, 0, videos=videos))
    assert f"{videos} videos were asked for; from 1 to 4 are made at a time." in said


def test_pictures_are_shown_as_the_encoder_sees_them(studio, order):
    seen = studio.seen(order.pictures)
    picture = read_image(order.pictures[1])
    np.testing.assert_array_equal(seen[1], letterbox(picture.image, picture.mask, 32, 32))
    assert len(seen) == 2
    assert len(studio.seen(())) == 0


@pytest.mark.parametrize(
    ("pictures", "prompt", "message"),
    [
        ((), "it jumps", "there is no picture"),
        (None, " ", "the prompt is empty"),
        (("no/none.png",), "it jumps", "^none.png: no such image file"),
        ("all", "it jumps", "4 references were given; at most 3"),
    ],
)
def test_orders_are_refused_in_a_sentence(studio, order, folder, pictures, prompt, message):
    given = {None: order.pictures, "all": order.pictures[:1] * 4}.get(pictures, pictures)
    with pytest.raises(InputError, match=message):
        studio.make(Order(given, prompt, "", 0, {}), folder / "bad.mp4", lambda report: None)


def test_pictures_are_counted_and_measured_before_they_are_decoded(studio, tmp_path, monkeypatch):
    """One file of 87 kB with 89 million pixels, named six times, took 3.6 GB."""
    decoded = []
    monkeypatch.setattr(references, "read_image", decoded.append)
    Image.fromarray(np.zeros((7000, 9500), np.uint8)).save(tmp_path / "large.png")
    for pictures, said in (([tmp_path / "large.png"] * 6, "6 references"), ([tmp_path / "large.png"], "66 million")):
        with pytest.raises(InputError, match=said):
            studio.seen([str(picture) for picture in pictures])
    assert not decoded


def test_words_that_the_model_does_not_know_are_named_beside_the_video(called, order):
    functions, visitor = called
    files, _, *rest = asked(order, visitor, 0)
    *_, (_, _, said, _) = functions["make"](files, "猫在跳 jumps", *rest)
    assert "The model does not know, and reads as one and the same: '猫在跳'." in html.unescape(said)
