"""The way from and to a ConfigDict."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from cinema_jax.config.checks import (
    _validate,
)
from cinema_jax.config.sections import (
    Config,
)
from cinema_jax.inputs import typed


def default() -> ConfigDict:
    """Every field at its default, to be changed by a config file and the command line."""
    return ConfigDict(to_dict(Config()))


def to_dict(value: Any) -> Any:
    """A config as nested plain dicts, for a ConfigDict or JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def parse(values: ConfigDict | dict) -> Config:
    """The frozen config of a ConfigDict (or of its JSON); InputError names a field that is unknown or of wrong type."""
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    config = typed.checked(values, Config, "config")
    _validate(config)
    return config
