"""Documented fields of a config's sections."""

import dataclasses
from typing import Any


def option(default: Any, doc: str) -> Any:
    """A documented field."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def section(default: Any, doc: str) -> Any:
    """A documented field that holds a section of fields; `default` builds it."""
    return dataclasses.field(default_factory=default, metadata={"doc": doc})
