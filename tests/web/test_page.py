"""The web page in a real browser."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import accessibility
import numpy as np
import playwright.sync_api
import pytest
from PIL import Image
from tiny import process_environment, random_run

SECONDS = 1000  # in playwright's milliseconds
PATIENCE = 120 * SECONDS
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SIZES = pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the server keeps its files, with what a killed one has left."""
    place = tmp_path_factory.mktemp("temporary")
    left = place / f"cinema_jax_serve-{os.getuid()}" / ".page.left.cinema_jax"
    left.mkdir(parents=True, mode=0o700)
    left.parent.chmod(0o700)
    (left / "picture.png").write_bytes(b"of a visitor")
    os.utime(left, (0, 0))
    return place


@pytest.fixture(scope="module")
def server(browser, place, tmp_path_factory):
    """A page of a random checkpoint: its address, its process and what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkpoint = random_run(tmp_path_factory.mktemp("runs") / "run")
    words = [f"--checkpoint={checkpoint}", f"--port={port}", "--max-upload=1", "--steps=2"]
    command = [sys.executable, "-m", "cinema_jax.serve", *words]
    environment = process_environment() | {"TMPDIR": str(place)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        printed = []
        for line in run.stdout:
            printed.append(line)
            if f":{port}" in line:
                break
        else:
            pytest.fail("".join(printed))
        try:
            yield f"http://127.0.0.1:{port}/", run, printed
        finally:
            run.kill()


@pytest.fixture
def opened(browser, server):
    """Opens the page in a window of some size; whatever it asks has to be its own server."""
    windows, requests = [], []

    def open_page(size=WIDE, **options):
        window = browser.new_page(viewport=size, **options)
        windows.append(window)
        window.on("request", lambda request: requests.append(request.url))
        window.goto(server[0])
        window.locator("#start").wait_for(timeout=PATIENCE)
        return window

    yield open_page
    for window in windows:
        window.close()
    others = [url for url in requests if not url.startswith((server[0], "data:", "blob:"))]
    assert not others, "the page asks others than its own server"


@pytest.fixture
def page(opened):
    return opened()


def click_an_example(page):
    page.get_by_text("the cat and the elephant meet").click()


def wait_for_the_video(page):
    page.get_by_text("Done in").wait_for(timeout=PATIENCE)
    page.locator("#video video").wait_for(timeout=PATIENCE)


def test_the_server_says_which_weights_it_has_and_where_it_is(server):
    weights, line = server[2]
    assert weights.startswith("weights of ")
    assert line.endswith(f" is at {server[0]} (Ctrl-C ends it)\n")


def test_an_example_becomes_a_video_and_its_command_by_one_click(page):
    click_an_example(page)
    wait_for_the_video(page)
    with urllib.request.urlopen(page.locator("#video video").get_attribute("src")) as answer:
        assert answer.read()[4:8] == b"ftyp"
    assert page.locator("#seen img").count() == 2
    command = page.locator("#command textarea")
    assert not command.is_visible()
    page.get_by_text("The same from the command line").click()
    assert "--reference=cat_1.png --reference=elephant_1.png" in command.input_value()


def test_pictures_are_put_in_order_by_dragging_and_by_keyboard(page):
    click_an_example(page)
    wait_for_the_video(page)
    names = page.locator("#seen figcaption")
    assert [name.strip("←") for name in names.all_inner_texts()] == ["cat_1", "elephant_1"]
    page.locator("#seen figure").nth(0).drag_to(page.locator("#seen figure").nth(1))
    page.get_by_role("button", name="Move cat_1 forward").wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Move cat_1 forward").press("Enter")
    page.get_by_role("button", name="Move elephant_1 forward").wait_for(timeout=PATIENCE)
    page.locator("#start").click()
    wait_for_the_video(page)
    page.get_by_text("The same from the command line").click()
    assert "--reference=cat_1.png --reference=elephant_1.png" in page.locator("#command textarea").input_value()


def test_several_videos_stand_next_to_each_other_and_a_seed_is_used_again(page):
    page.get_by_text("Settings").click()
    page.get_by_label("number input for Videos").fill("2")
    click_an_example(page)
    page.get_by_text("seed 1.").wait_for(timeout=PATIENCE)
    shown = page.locator("#strip button")
    # Each video comes into the strip when its first frame is there.
    shown.nth(1).wait_for(timeout=PATIENCE)
    assert shown.all_inner_texts() == ["seed 1", "seed 0"]
    first, second = (video.get_attribute("src") for video in page.locator("#strip video").all())
    assert page.locator("#video video").evaluate("video => video.currentSrc") == first
    shown.nth(1).click()
    assert page.locator("#video video").evaluate("video => video.currentSrc") == second
    page.get_by_text("The last seed again").click()
    page.get_by_label("number input for Videos").fill("1")
    page.wait_for_function("document.querySelector('input[aria-label=\"Seed\"]').value === '1'")
    page.locator("#start").click()
    page.get_by_text("Starting.").wait_for(state="hidden")
    page.locator("#strip button").nth(2).wait_for(timeout=PATIENCE)
    assert shown.all_inner_texts() == ["seed 1", "seed 1", "seed 0"]
    again = page.locator("#strip video").nth(0).get_attribute("src")
    with urllib.request.urlopen(first) as one, urllib.request.urlopen(again) as other:
        assert one.read() == other.read()


def test_a_video_is_stopped_quietly_and_the_last_one_stays(page):
    stop, start = page.locator("#stop"), page.locator("#start")
    assert not stop.is_visible()
    click_an_example(page)
    wait_for_the_video(page)
    last = page.locator("#video video").get_attribute("src")
    page.get_by_text("Settings").click()
    # Long enough to be stopped: of other guidance the model is compiled anew before the first of many steps.
    page.get_by_label("number input for Steps").fill("100")
    for scale in ("prompt", "references"):
        page.get_by_label(f"number input for Guidance: {scale}").fill("1")
    start.click()
    stop.wait_for(state="visible", timeout=PATIENCE)
    assert page.locator(":is(#start, #examples button):not(:disabled)").count() == 0
    # A click in the moment in which the button appears is lost.
    for _ in range(600):
        if page.get_by_text("Stopped.").count() or page.get_by_text("Done in").count():
            break
        if stop.is_visible():
            with contextlib.suppress(playwright.sync_api.TimeoutError):
                stop.click(timeout=SECONDS)
        page.wait_for_timeout(0.2 * SECONDS)
    page.get_by_text("Stopped.").wait_for(timeout=SECONDS)
    stop.wait_for(state="hidden")
    assert page.locator("#video video").get_attribute("src") == last
    assert not page.get_by_text("Error").count()
    assert start.is_enabled()


def test_generate_waits_for_a_picture_and_a_prompt(page, tmp_path):
    start = page.locator("#start")
    assert start.is_disabled()
    page.get_by_label("Prompt", exact=True).fill("it jumps")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    assert start.is_disabled()
    page.locator("#files input[type=file]").set_input_files(tmp_path / "red.png")
    page.locator("#start:enabled").wait_for(timeout=PATIENCE)
    page.get_by_label("Prompt", exact=True).fill("")
    page.locator("#start:disabled").wait_for(timeout=PATIENCE)


@SIZES
def test_what_it_is_and_the_examples_are_seen_without_scrolling(opened, size):
    page = opened(size)
    assert "CINEMA (arXiv 2503.10391)" in page.locator("#header").inner_text()
    assert "million parameters" in page.locator("#header").inner_text()
    for example in page.locator("#examples button").all():
        box = example.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= size["width"]
        assert box["y"] + box["height"] <= size["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]


def test_on_a_phone_the_video_is_right_below_generate(opened):
    page = opened(PHONE)
    click_an_example(page)
    wait_for_the_video(page)
    start, video = page.locator("#start").bounding_box(), page.locator("#video").bounding_box()
    assert 0 < video["y"] - start["y"] - start["height"] < 100
    assert video["y"] < PHONE["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@SIZES
def test_everybody_can_use_it(opened, size, scheme):
    page = opened(size, color_scheme=scheme)
    checks = (accessibility.without_a_name, accessibility.too_small, accessibility.too_faint)
    assert [check(page) for check in checks] == [[], [], []]
    click_an_example(page)
    wait_for_the_video(page)
    page.get_by_text("Settings").click()
    page.get_by_text("The same from the command line").click()
    assert [check(page) for check in checks] == [[], [], []]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, scheme):
    page = opened(color_scheme=scheme)
    assert accessibility.violations(page) == []
    click_an_example(page)
    wait_for_the_video(page)
    page.get_by_text("Settings").click()
    page.get_by_text("The same from the command line").click()
    assert accessibility.violations(page) == []


def test_the_keyboard_reaches_everything_in_the_order_in_which_it_is_used(page):
    click_an_example(page)
    wait_for_the_video(page)
    stops = accessibility.focus(page)
    assert all(seen for _, seen in stops)
    names = [name for name, _ in stops]
    prompts = page.locator("#examples button").all_inner_texts()
    wanted = [*prompts, "Add pictures", "Prompt", "Generate", "Play or pause", "Settings", "The same from"]
    places = [next(i for i, name in enumerate(names) if name.startswith(one.strip())) for one in wanted]
    assert places == sorted(places)


def test_what_is_no_picture_is_refused(page, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "text.png")
    page.get_by_text("text.png: not an image that can be read").wait_for(timeout=PATIENCE)


def test_large_files_are_refused(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "large.png")
    page.get_by_text("exceed the maximum allowed size").first.wait_for(timeout=PATIENCE)


def test_a_port_that_is_taken_is_refused_in_a_sentence(server):
    command = [word for word in server[1].args if word != "--max-upload=1"]
    ended = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.release
def test_it_ends_while_it_compiles(server):
    """By Ctrl-C, on a port of its own: the compiler's threads hear of nothing."""
    command = [word for word in server[1].args if not word.startswith("--port")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command.append(f"--port={free.getsockname()[1]}")
    with subprocess.Popen(command, env=process_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        assert run.stdout.readline()
        run.send_signal(signal.SIGINT)
        assert (run.communicate(timeout=60)[0], run.returncode) == (b"", 0)


def test_nothing_of_visitors_is_left_behind(server, place: Path):
    """The last test: it ends the server."""
    (own,) = place.glob("cinema_jax_serve-*")
    assert list(own.glob(".page.*/visitors/*"))
    assert not (own / ".page.left.cinema_jax").exists(), "what a killed server left is still there"
    server[1].send_signal(signal.SIGTERM)
    server[1].wait(60)
    assert not list(own.iterdir())
