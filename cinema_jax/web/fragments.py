"""Pieces of HTML of the page: what Gradio has no component for, or none that everybody can use."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinema_jax.data.images import open_image
from cinema_jax.web.studio import Report

PAPER = "https://arxiv.org/abs/2503.10391"
# Pixels of an example's thumbnail.
_THUMBNAIL = 96
# The examples' template; `busy` is "disabled" while a video is being made.
GALLERY = "<fieldset ${busy}>${value}</fieldset>"
# Tells the server which example was clicked.
CLICKED = """element.addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (chosen) trigger("click", {number: Number(chosen.dataset.number)});
});"""
# The last videos of this visit; page.js fills it.
STRIP = "<h2 hidden>Videos of this visit</h2><div></div>"
# Tells the server which picture is to stand where: dragged there, or moved by its button.
MOVED = """let picture;
const number = (event) => {
  const figure = event.target.closest("figure");
  return figure && Number(figure.dataset.number);
};
element.addEventListener("dragstart", (event) => { picture = number(event); });
element.addEventListener("dragover", (event) => { if (picture !== undefined) event.preventDefault(); });
element.addEventListener("drop", (event) => {
  const place = number(event);
  if (picture !== undefined && place !== null) { event.preventDefault(); trigger("click", {picture, place}); }
});
element.addEventListener("dragend", () => { picture = undefined; });
element.addEventListener("click", (event) => {
  if (event.target.closest("button")) trigger("click", {picture: number(event), place: number(event) - 1});
});"""
# On a phone the examples are a screen above the video. What goes to the server stays as it is.
SHOW_VIDEO = '(...values) => { document.getElementById("video").scrollIntoView({block: "nearest"}); return values; }'


def header(about: str) -> str:
    """What the page is, in two lines."""
    return (
        "<h1>Several subjects, one video</h1>"
        "<p>One picture of each subject and one sentence become a short video, by the method of "
        f'<a href="{PAPER}">CINEMA (arXiv 2503.10391)</a>. cinema_jax, Apache-2.0.</p>'
        f"<p>{html.escape(about)}</p>"
    )


def examples(found: Sequence[tuple[list[str], str]]) -> str:
    """A button for each example, with its pictures and its prompt."""
    buttons = []
    for number, (files, prompt) in enumerate(found):
        shown = "".join(f'<img src="{_thumbnail(file)}" alt="">' for file in files)
        buttons.append(
            f'<button type="button" data-number="{number}"><span class="row">{shown}</span>'
            f"<span>{html.escape(prompt)}</span></button>"
        )
    return f"<legend>Examples: one click makes a video</legend><div>{''.join(buttons)}</div>"


def pictures(seen: UInt8[np.ndarray, "K height width 3"], names: Sequence[str]) -> str:
    """The pictures as the model sees them, whole, each under its name, with a button that moves it forward."""
    figures = []
    for number, (image, name) in enumerate(zip(map(Image.fromarray, seen), names, strict=True)):
        said = html.escape(name)
        forward = f'<button type="button" aria-label="Move {said} forward">&larr;</button>' if number else ""
        figures.append(
            f'<figure draggable="true" data-number="{number}"><img src="{_url(image)}" alt="" draggable="false">'
            f"<figcaption>{forward}{said}</figcaption></figure>"
        )
    if not figures:
        return "<p>Cut-outs with a transparent background work best: what is opaque is the subject.</p>"
    order = ", in their order (drag one to change it)" if len(figures) > 1 else ""
    return f'<p>As the model sees them{order}:</p><div class="pictures">{"".join(figures)}</div>'


def alert(text: str) -> str:
    """A sentence on what is wrong."""
    return f'<p role="alert">{html.escape(text)}.</p>'


def status(said: str) -> str:
    """A sentence on what is going on, where nothing can be counted."""
    return _status(said, "hidden", "")


def progress(report: Report, seconds: float, place: tuple[int, int] = (1, 1)) -> str:
    """How far a video is, `seconds` after it was asked for; its `place` is its number and how many were asked for."""
    which = "the video" if place[1] == 1 else f"video {place[0]} of {place[1]}"
    if report.phase == "compiling":
        more = f"It happens once and may take three minutes; {seconds:.0f} s so far"
        return _status("Compiling the model.", "", more)
    done = f'value="{report.done}" max="{report.count}"'
    left = "" if report.left is None else f", about {max(1, round(report.left))} s left"
    if report.phase == "decoding":
        return _status(f"Decoding {which}.", done, f"all {report.count} steps{left}")
    return _status(f"Sampling {which}.", done, f"step {report.done} of {report.count}{left}")


def _status(said: str, bar: str, more: str) -> str:
    # Always the same elements: a screen reader reads out what changes in the first, and not every step.
    return (
        f'<p role="status">{html.escape(said)}</p>'
        f'<progress aria-label="Progress of the video" {bar}></progress><p>{html.escape(more)}</p>'
    )


def _thumbnail(file: str) -> str:
    with open_image(Path(file)) as image:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return _url(image)


def _url(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
