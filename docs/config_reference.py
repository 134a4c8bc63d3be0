"""Writes `config.md` beside this file from the dataclasses: `python docs/config_reference.py`."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cinema_jax.config import Config

FILE = Path(__file__).with_name("config.md")
HEAD = """# Every field of a config

A file in `configs/` starts from these defaults and changes what it needs. The command line changes single fields, after
`--config`: `--config.finetune.steps=200`, `--config.data.augment.flip=0.5`. This page is made by
`python docs/config_reference.py` from the dataclasses.
"""
# Defaults longer than this say nothing in a table.
LONGEST = 40


def documents(kind: type) -> dict[str, str]:
    """What a dataclass says of its fields: in their metadata, or in the comments above them or in their lines."""
    bases = filter(dataclasses.is_dataclass, kind.__bases__)
    found = {name: doc for base in bases for name, doc in documents(base).items()}
    lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    found |= {field.name: doc for field in dataclasses.fields(kind) if (doc := field.metadata.get("doc"))}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign) and not found.get(node.target.id, ""):
            beside = [line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
            first = node.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            above = [line.strip("# ") for line in lines[first : node.lineno - 1]]
            found[node.target.id] = " ".join(above + [text for text in beside if text])
    return found


def rows(kind: type, value: Any, path: str, shown: dict[Any, str]) -> Iterator[str]:
    """The table of a section, then those of the sections in it; `shown`: the place of each value that has a table."""
    hints, told, sections = typing.get_type_hints(kind), documents(kind), []
    if (first := shown.setdefault(value, path)) != path:
        yield f"\n## {path}\n\nThe fields and defaults of [{first}](#{first.replace('.', '')})."
        return
    yield f"\n## {path}\n\n{inspect.getdoc(kind)}\n\n| field | default | |\n|---|---|---|"
    for field in dataclasses.fields(kind):
        own = getattr(value, field.name)
        if dataclasses.is_dataclass(own):
            sections.append((type(own), own, f"{path}.{field.name}"))
            continue
        default = "..." if len(repr(own)) > LONGEST else repr(own)
        hint = hints[field.name]
        accepted = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        choice = f" One of {', '.join(f'`{x!r}`' for x in accepted)}." if accepted else ""
        yield f"| `{field.name}` | `{default}` | {told[field.name]}{choice} |"
    for section in sections:
        yield from rows(*section, shown)


def reference() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows(Config, Config(), "config", {})) + "\n"


if __name__ == "__main__":
    FILE.write_text(reference())
