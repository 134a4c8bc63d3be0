"""What was measured, as a table, as JSON (docs/evaluate.md has its fields) and as a page with all videos."""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cinema_jax.data.images import letterbox
from cinema_jax.evaluation.benchmark import Result
from cinema_jax.evaluation.figures import Figure
from cinema_jax.evaluation.suite import Case
from cinema_jax.evaluation.videos import Gallery, Video

# What each measure is called for people, and whether it is a share (in per cent).
MEASURES = {
    "identity": ("identity: own reference first of {candidates}", True),
    "pairwise": ("identity: own reference before another one", True),
    "strangers": ("detected subjects of no reference", True),
    "present": ("detected subjects over asked for", True),
    "binding": ("binding: everybody plays its own role", True),
    "action": ("action: travels, jumps or stays as told", True),
    "direction": ("direction as told", True),
    "place": ("place as told", True),
    "consistency": ("first to last third, likeness of a subject", False),
    "motion": ("path of a subject, frame heights", False),
    "change": ("change from frame to frame, of 1", False),
    "copy_paste": ("closeness to a pasted reference, of 1", False),
    "clip_t": ("CLIP-T", False),
    "clip_i": ("CLIP-I", False),
    "dino_i": ("DINO-I", False),
}
COLUMNS = ("generated", "generated_shuffled", "real", "real_shuffled", "reconstructed")
Figures = dict[str, dict[str, dict[str, Figure | None]]]


def table(found: Figures, candidates: int) -> str:
    """All measures over all cases, and identity by group, as plain text."""
    rows = [["", *(name.replace("_", ", ") for name in COLUMNS)]]
    for name, (title, share) in ((name, MEASURES[name]) for name in MEASURES if name in found):
        values = (_text(found[name][column]["all"], share) for column in COLUMNS)
        rows.append([title.format(candidates=candidates), *values])
    for measure in ("identity", "binding"):
        for group in list(found[measure]["real"])[1:]:
            columns = [found[measure][column][group] for column in COLUMNS]
            if columns[2] is not None:
                rows.append([f"{measure}, {group}", *(_text(x, True) for x in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def _text(figure: Figure | None, share: bool) -> str:
    if figure is None:
        return "-"
    if share:
        return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def as_json(found: Figures, cases: Sequence[Case], results: dict[str, Result], about: dict[str, Any]) -> dict[str, Any]:
    """Everything, for programs."""
    values = {
        name: {
            column: {group: x and dataclasses.asdict(x) for group, x in groups.items()}
            for column, groups in columns.items()
        }
        for name, columns in found.items()
    }
    per_case = [
        {
            "id": case.id,
            "prompt": case.prompt,
            "vague": case.vague,
            "action": case.scene.action,
            "seed": case.index,
            "subjects": [actor.subject.describe() for actor in case.scene.actors],
            "sums": {kind: result.own[row] for kind, result in results.items()},
        }
        for row, case in enumerate(cases)
    ]
    return {"schema": 1, **about, "figures": values, "cases": per_case}


def write_page(
    folder: Path, text: str, cases: Sequence[Case], results: dict[str, Result], real: Sequence[Video], title: str
) -> Path:
    """`index.html` in the folder of the generated videos: every case with references, real and generated frames."""
    height = real[0].shape[1]
    references, reals = Gallery(folder / "references"), Gallery(folder / "real")
    rows = []
    for number, (case, video) in enumerate(zip(cases, real, strict=True)):
        references.write(case.id, [letterbox(r.image, r.mask, height, height) for r in case.shown])
        reals.write(case.id, video)
        sums = results["generated"].own[number]
        right = f"identity {sums['identity'][0]:.0f} of {sums['identity'][1]}"
        if sums["binding"][1]:
            right += f", binding {'right' if sums['binding'][0] else 'wrong'}"
        images = "".join(
            f'<img src="{where}{case.id}.png" height="{96 if height < 192 else height // 2}" loading="lazy">'
            for where in ("references/", "real/", "")
        )
        vague = " (vague)" if case.vague else ""
        rows.append(f"<p>{images}<br>{case.id}: {html.escape(case.prompt)}{vague}. {right}</p>")
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:14px sans-serif;white-space:nowrap}img{image-rendering:pixelated;margin-right:16px}</style>"
        f"<h1>{html.escape(title)}</h1><pre>{html.escape(text)}</pre>"
        f"<p>references | real video | generated video</p>{''.join(rows)}\n"
    )
    return page
