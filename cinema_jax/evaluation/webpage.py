"""The page of an evaluation: its figures explained, and every generated video next to the real one."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinema_jax.data.output import visible, write_video
from cinema_jax.evaluation.videos import Video
from cinema_jax.inputs.files import write_text

_STYLE = (Path(__file__).parents[1] / "assets/web/evaluation.css").read_text()
_SCRIPT = (Path(__file__).parents[1] / "assets/web/evaluation.js").read_text()


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure, as text: what was reached, what could be, and what is reached by chance ("-": cannot be said)."""

    title: str
    meaning: str
    generated: str
    ceiling: str
    chance: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """A case: what was asked for, and what came of it."""

    id: str
    prompt: str
    references: Sequence[UInt8[np.ndarray, "height width 3"]]
    real: Video
    generated: Video
    note: str = ""


def write(
    folder: Path,
    title: str,
    rows: Sequence[Row],
    words: Mapping[str, str],
    cases: Sequence[Shown],
    fps: float | int,
    text: str,
) -> Path:
    """Write `index.html`, and the videos that it plays to `real` and `generated`, in the folder; returns the page.

    Args:
        rows: the table.
        words: terms of the table with their meaning.
        text: all figures, as they were printed.
    """
    file = folder / "index.html"
    write_text(
        file,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f"<main><h1>{html.escape(title)}</h1>{_table(rows)}{_words(rows, words)}"
        "<details><summary>All figures, as they were printed</summary>"
        f'<pre tabindex="0" role="region" aria-label="All figures">{html.escape(text)}</pre></details>'
        '<h2>Videos</h2><p><button type="button" id="pause" aria-pressed="false">Pause all videos</button></p>'
        f"{''.join(_case(folder, case, fps) for case in cases)}</main><script>{_SCRIPT}</script></html>\n",
    )
    return file


def _table(rows: Sequence[Row]) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("figure", "generated", "ceiling", "chance"))
    lines = "".join(
        f'<tr><th scope="row">{html.escape(row.title)}</th>'
        + "".join(f"<td>{_cell(text)}</td>" for text in (row.generated, row.ceiling, row.chance))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(text: str) -> str:
    """A figure, and its interval on a line of its own."""
    figure, bracket, interval = html.escape(text).partition(" [")
    return f"{figure}<small>[{interval}</small>" if bracket else figure


def _words(rows: Sequence[Row], words: Mapping[str, str]) -> str:
    told = dict(words) | {row.title: row.meaning for row in rows}
    terms = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(meaning)}</dd>" for word, meaning in told.items())
    return f"<details><summary>What the words mean</summary><dl>{terms}</dl></details>"


def _case(folder: Path, case: Shown, fps: float | int) -> str:
    figures = []
    if case.references:
        (folder / "references").mkdir(exist_ok=True)
        Image.fromarray(np.concatenate(list(case.references), axis=1)).save(folder / "references" / f"{case.id}.png")
        image = f'<img src="references/{case.id}.png" alt="" loading="lazy">'
        figures.append(f"<figure>{image}<figcaption>references</figcaption></figure>")
    for kind, frames in (("generated", case.generated), ("real", case.real)):
        video = folder / kind / f"{case.id}.mp4"
        write_video(video, visible(frames, fps, video, loop=1)[0], fps)
        label = f'aria-label="{kind}: {html.escape(case.prompt)}"'
        player = f'<video src="{kind}/{case.id}.mp4" {label} loop muted playsinline preload="metadata"></video>'
        figures.append(f"<figure>{player}<figcaption>{kind}</figcaption></figure>")
    note = f"<p>{html.escape(case.note)}</p>" * bool(case.note)
    return f"<article><h3>{html.escape(case.prompt)}</h3><div>{''.join(figures)}</div>{note}</article>"
