"""The pictures of the web page in the README, taken in Debian's chromium:

    python docs/web_picture.py

clicks the second example of the packaged demo and makes two videos of it, at a desktop's and at a phone's size.
"""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PATIENCE = 240_000  # milliseconds
SIZES = {"web": {"width": 1280, "height": 800}, "web_phone": {"width": 390, "height": 844}}
# A page has few colours.
COLORS = 128


def main() -> None:
    """Write docs/web.png and docs/web_phone.png."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cinema_jax.serve", f"--port={port}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server,
        sync_playwright() as running,
    ):
        assert server.stdout is not None
        while f":{port}" not in (line := server.stdout.readline()):
            assert line, "the server ended"
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, size in SIZES.items():
            page = browser.new_page(viewport=size)
            page.goto(f"http://127.0.0.1:{port}/")
            _make_a_video(page)
            file = Path(__file__).with_name(f"{name}.png")
            page.screenshot(path=file)
            with Image.open(file) as image:
                image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
        browser.close()
        server.terminate()


def _make_a_video(page: Page) -> None:
    page.locator("#start").wait_for(timeout=PATIENCE)
    page.locator("#examples button").nth(1).click()
    page.get_by_text("seed 0.").wait_for(timeout=PATIENCE)
    page.locator("#video video").wait_for(timeout=PATIENCE)
    # Another one of the same prompt, next to it.
    page.locator("#start:enabled").click()
    page.get_by_text("seed 1.").wait_for(timeout=PATIENCE)
    # The first frame is there a moment after its element.
    page.wait_for_timeout(3000)


if __name__ == "__main__":
    main()
