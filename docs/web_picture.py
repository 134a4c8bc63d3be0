"""The picture of the web page in the README, taken in Debian's chromium:

    python docs/web_picture.py

clicks the first example of the packaged demo and waits for its video.
"""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PATIENCE = 240_000  # milliseconds


def main() -> None:
    """Write docs/web.png."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cinema_jax.serve", f"--port={port}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server,
        sync_playwright() as running,
    ):
        assert server.stdout is not None
        while "Running on" not in (line := server.stdout.readline()):
            assert line, "the server ended"
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(f"http://127.0.0.1:{port}/")
        _make_a_video(page)
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=Path(__file__).with_name("web.png"))
        browser.close()
        server.terminate()


def _make_a_video(page: Page) -> None:
    page.locator("#start").wait_for(timeout=PATIENCE)
    page.locator("table tr.tr-body").first.click()
    page.locator("#seen img").nth(1).wait_for(timeout=PATIENCE)
    page.locator("#start").click()
    page.locator("#video video").wait_for(timeout=PATIENCE)
    page.locator("#command .cm-content").wait_for(timeout=PATIENCE)
    # The first frame is there a moment after its element.
    page.wait_for_timeout(3000)


if __name__ == "__main__":
    main()
