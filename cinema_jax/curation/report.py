"""`report.html`: how much each step kept and rejected, and examples of both."""

import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cinema_jax.curation.results import Example, fewest

_STYLE = (Path(__file__).parents[1] / "assets/web/evaluation.css").read_text()


def page(counts: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """The page, in one file, with its pictures in it."""
    shown = sorted(fewest(examples), key=lambda one: (one.step, one.reason, one.id))
    groups = groupby(shown, key=lambda one: (one.step, one.reason))
    parts = "".join(_group(step, reason, list(group)) for (step, reason), group in groups)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Curated videos</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f"<main><h1>Curated videos</h1>{_summary(counts)}{_table(counts['rejected'])}{parts}</main></html>\n"
    )


def _summary(counts: Mapping[str, Any]) -> str:
    named = (f"{counts[name]} {name}" for name in ("videos", "videos in the manifest", "clips", "seconds"))
    return f"<p>{html.escape(', '.join(named))}.</p>"


def _table(rejected: Mapping[str, Mapping[str, int]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", "reason", "rejected"))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(step)}</th><td>{html.escape(reason)}</td><td>{count}</td></tr>'
        for step, reasons in rejected.items()
        for reason, count in reasons.items()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else "<p>None rejected.</p>"


def _group(step: str, reason: str, examples: Sequence[Example]) -> str:
    figures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{one.picture}" alt="{html.escape(one.id)}">'
        f"<figcaption>{html.escape(one.id)}: {html.escape(one.detail)}</figcaption></figure>"
        for one in examples
    )
    return f"<h2>{html.escape(step)}: {html.escape(reason)}</h2>{figures}"
