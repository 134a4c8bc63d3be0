"""A real browser: Debian's chromium, without a screen."""

import shutil

import pytest


# Not of the session: while it runs, no other event loop can in this process, and a notebook needs one.
@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("pages are tested in Debian's chromium, and there is none here")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
