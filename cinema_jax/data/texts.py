"""Texts as they are before a tokenizer cuts them."""

import html

import ftfy


def clean(text: str) -> str:
    """Repaired where it was decoded wrongly, without HTML's escapes, all white space single (`WanPipeline`)."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
