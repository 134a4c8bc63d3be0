"""What was measured, as a table, as JSON (docs/evaluate.md has its fields) and as a page with all videos."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cinema_jax.data.images import letterbox
from cinema_jax.evaluation import webpage
from cinema_jax.evaluation.benchmark import Result
from cinema_jax.evaluation.figures import Figure
from cinema_jax.evaluation.suite import Case
from cinema_jax.evaluation.videos import Video

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
# What each says, on the page.
MEANINGS = {
    "identity": "of {candidates} candidates' pictures the subject's own is the one most seen in the video",
    "pairwise": "share of the other candidates that the subject's own picture beats",
    "strangers": "share of the subjects found in the frames that are more like another candidate; low is good",
    "present": "subjects found in the frames, of those asked for",
    "binding": "where roles differ (who chases whom), each reference's subject plays its own",
    "action": "each subject travels, jumps or stays as the prompt says",
    "direction": "to the left or to the right, where the prompt says which",
    "place": "the background is of the kind that the prompt names",
    "consistency": "likeness of a subject's looks in the first and in the last third of the video (cosine, at most 1)",
    "motion": "length of a subject's path; read it against the ceiling",
    "change": "mean difference of successive frames; less than the ceiling is stiff, more is flicker",
    "copy_paste": "correlation with the reference's own pixels; nearly 1 is a pasted picture",
    "clip_t": "likeness of frames and prompt to CLIP (cosine)",
    "clip_i": "likeness of frames and references to CLIP (cosine)",
    "dino_i": "likeness of frames and references to DINO (cosine)",
}
WORDS = {
    "generated": "the checkpoint's videos; in brackets the 95 % interval that other prompts could have given",
    "ceiling": "real videos through the checkpoint's VAE and back: the best that it could show",
    "chance": "its videos, measured against another case's references and prompt",
    "vague": "a prompt that says of nobody what it looks like",
}
# What is measured without references and prompt has no chance.
_ALONE = ("present", "motion", "change")
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
    folder: Path,
    found: Figures,
    candidates: int,
    cases: Sequence[Case],
    results: dict[str, Result],
    videos: dict[str, Sequence[Video]],
    fps: float | int,
    title: str,
) -> Path:
    """`index.html` in the folder of the generated videos: the figures, and every case, generated next to real."""
    rows, shown = [], []
    for name, (measure, share) in ((name, MEASURES[name]) for name in MEASURES if name in found):
        generated, ceiling, chance = (
            _text(found[name][column]["all"], share) for column in ("generated", "reconstructed", "generated_shuffled")
        )
        words = (text.format(candidates=candidates) for text in (measure, MEANINGS[name]))
        rows.append(webpage.Row(*words, generated, ceiling, "-" if name in _ALONE else chance))
    for number, case in enumerate(cases):
        generated, real = videos["generated"][number], videos["real"][number]
        side = real.shape[1]
        sums = results["generated"].own[number]
        note = (
            f"{case.id}{' (vague)' if case.vague else ''}: identity {sums['identity'][0]:.0f} of {sums['identity'][1]}"
        )
        if sums["binding"][1]:
            note += f", binding {'right' if sums['binding'][0] else 'wrong'}"
        pictures = [letterbox(r.image, r.mask, side, side) for r in case.shown]
        shown.append(webpage.Shown(case.id, case.prompt, pictures, real, generated, note))
    return webpage.write(folder, title, rows, WORDS, shown, fps, table(found, candidates))
