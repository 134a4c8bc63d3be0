"""The page of an evaluation in a real browser, on a phone: as a file, without a server."""

import accessibility
import numpy as np
import pytest

from cinema_jax.evaluation import webpage

PHONE = {"width": 390, "height": 844}
SHARE = "82.2 % [78.1, 85.9]"
PLAYING = "[...document.querySelectorAll('video')].filter((video) => !video.paused).length"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rng = np.random.default_rng(0)
    real, generated = rng.integers(0, 256, (2, 5, 32, 32, 3), dtype=np.uint8)
    rows = [
        webpage.Row(f"figure {number}: own reference first of 64", "what it says", SHARE, SHARE, "1.6 % [0.5, 2.8]")
        for number in range(8)
    ]
    cases = [webpage.Shown(f"k{i}", f"the bird jumps <{i}>", [real[0]] * 3, real, generated, "a note") for i in (0, 1)]
    title = "runs/a_long_name_of_a_run/without/a/space: suite critters (seed 0), 216 prompts"
    return webpage.write(tmp_path_factory.mktemp("evaluation"), title, rows, {"ceiling": "a word"}, cases, 8, "x" * 200)


@pytest.fixture
def page(browser, written):
    opened = browser.new_page(viewport=PHONE)
    opened.goto(written.as_uri())
    yield opened
    opened.close()


def test_it_fits_a_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator("table").bounding_box()["width"] <= PHONE["width"]


def test_videos_in_view_play_side_by_side_until_they_are_paused(page):
    generated, real = page.locator("video").first, page.locator("video").nth(1)
    generated.scroll_into_view_if_needed()
    page.wait_for_function(f"{PLAYING} >= 2")
    assert generated.bounding_box()["y"] == real.bounding_box()["y"]
    assert real.evaluate("video => video.loop && video.videoWidth > 0")
    page.get_by_role("button", name="Pause all videos").click()
    page.wait_for_function(f"{PLAYING} === 0")


def test_everybody_can_use_it(page):
    page.get_by_text("All figures").first.click()
    for check in (accessibility.without_a_name, accessibility.too_small, accessibility.too_faint):
        assert check(page) == []
    assert all(seen for _, seen in accessibility.focus(page))


def test_axe_finds_nothing(page):
    page.get_by_text("All figures").first.click()
    assert accessibility.violations(page) == []
