"""The web page in a real browser: Debian's chromium, without a screen."""

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import process_environment, random_run

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("the web page needs Debian's chromium to be tested, and there is none here", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

SECONDS = 1000  # in playwright's milliseconds
PATIENCE = 120 * SECONDS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the server keeps its files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(place, tmp_path_factory):
    """A page of a random checkpoint: its address, and its process."""
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
            if "Running on" in line:
                break
        else:
            pytest.fail("".join(printed))
        try:
            yield f"http://127.0.0.1:{port}/", run
        finally:
            run.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(browser, server):
    opened = browser.new_page()
    asked = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(server[0])
    opened.locator("#start").wait_for(timeout=PATIENCE)
    yield opened
    opened.close()
    others = [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]
    assert not others, "the page asks others than its own server"


def test_an_example_becomes_a_video_and_its_command(page):
    page.get_by_text("the cat and the elephant meet").click()
    page.locator("#seen img").nth(1).wait_for(timeout=PATIENCE)
    page.locator("#start").click()
    video = page.locator("#video video")
    video.wait_for(timeout=PATIENCE)
    with urllib.request.urlopen(video.get_attribute("src")) as answer:
        assert answer.read()[4:8] == b"ftyp"
    command = page.locator("#command .cm-content").inner_text()
    assert "--reference=cat_1.png --reference=elephant_1.png" in command.replace("\n", "")


def test_a_video_is_stopped(page):
    page.get_by_text("the cat and the elephant meet").click()
    page.get_by_text("More").click()
    page.get_by_label("number input for Steps").fill("100")
    page.locator("#start").click()
    page.get_by_text("processing").first.wait_for(timeout=PATIENCE)
    page.locator("#stop").click()
    page.get_by_text("The video was stopped.").wait_for(timeout=PATIENCE)


def test_what_is_no_picture_is_refused(page, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "text.png")
    page.get_by_text("not an image that can be read").wait_for(timeout=PATIENCE)


def test_large_files_are_refused(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "large.png")
    page.get_by_text("exceed the maximum allowed size").first.wait_for(timeout=PATIENCE)


def test_nothing_of_visitors_is_left_behind(server, place: Path):
    """The last test: it ends the server."""
    assert list(place.glob("cinema_jax_*/visitors/*"))
    server[1].send_signal(signal.SIGTERM)
    server[1].wait(60)
    assert not list(place.glob("cinema_jax_*"))
