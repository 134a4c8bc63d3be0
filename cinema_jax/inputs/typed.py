"""Values of JSON and of configs as what a signature says: wrong types are refused by name, where they enter."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from cinema_jax.errors import InputError

# No network known has a size beyond, nor so many layers. A config that says more would have shapes worked out for
# hours, and memory asked for that no machine has.
MOST, MOST_LAYERS = 1 << 24, 512
# Those that are built one by one, in each of some stages.
_MOST_BLOCKS, _MOST_STAGES = 64, 16
# Of one field of a config. Lists, which notes have, may be longer.
MOST_VALUES = 4096
# Numbers of things, which begin with 0; all others are sizes.
_FROM_0 = ("image_token_id", "fullatt_block_indexes", "image_embed_dim", "mllm_embed_dim")
_MOST_OF = {
    **dict.fromkeys(("num_layers", "num_hidden_layers", "depth"), MOST_LAYERS),
    **dict.fromkeys(("num_res_blocks", "layers_per_block", "blocks", "deep_blocks"), _MOST_BLOCKS),
}
_STAGES = ("block_out_channels", "dim_mult", "temporal_downsample")


def checked(value: Any, kind: Any, name: str) -> Any:
    """`value` as of type `kind`: a scalar, `Literal`, union, tuple, list, dict or dataclass; lists do for tuples.

    Args:
        name: what messages call it; of a file's fields "FILE: ", to which they add the field's name.

    Raises:
        InputError: it is not. Of a dataclass also where a field is unknown, or
            what its own checks say.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _section(value, kind, name)
    if origin is Literal:
        # In a list, 1 is True: accepted is what has the same type.
        if not any(type(value) is type(one) and value == one for one in arguments):
            raise InputError(f"{name} is {_shown(value)}; accepted: {', '.join(map(repr, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of(value, arguments, name)
    if origin in (tuple, list):
        return _several(value, origin, arguments, name)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{name} is {_shown(value)}; it must be a section with fields")
        return {key: checked(each, arguments[1], _within(name, key)) for key, each in value.items()}
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is int and abs(value) >= 2**63:
        raise InputError(f"{name} is {_shown(value)}; no number here is so large")
    if type(value) is not kind:
        raise InputError(f"{name} is {_shown(value)}; it must be of type {kind.__name__}")
    return value


def _section(value: Any, kind: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, dict):
        raise InputError(f"{name} is {_shown(value)}; it must be a section with fields")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        there = f"{name or 'the network'} has {', '.join(sorted(fields))}"
        raise InputError(f"{_within(name, _shown(unknown[0], str))} does not exist; {there}")
    needed = [field.name for field in fields.values() if _needed(field) and field.name not in value]
    if needed:
        raise InputError(f"{_within(name, needed[0])} is missing")
    arguments = {key: checked(item, hints[key], _within(name, key)) for key, item in value.items()}
    try:
        return kind(**arguments)
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{name}: {error}" if name else str(error)) from None


def _within(name: str, field: str) -> str:
    # What ends so says in which file the fields are.
    return name + field if not name or name.endswith(": ") else f"{name}.{field}"


def _needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _one_of(value: Any, arguments: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    if isinstance(value, dict) and all(map(dataclasses.is_dataclass, kinds)):
        # The section that has these fields, or all of them; else the first one says what is wrong.
        fields = {kind: {field.name for field in dataclasses.fields(kind)} for kind in kinds}
        kinds.sort(key=lambda kind: (set(value) != fields[kind], not set(value) <= fields[kind]))
    elif exact := [kind for kind in kinds if type(value) is kind]:
        kinds = exact
    return checked(value, kinds[0], name)


def _several(value: Any, origin: type, arguments: tuple[Any, ...], name: str) -> Any:
    if not isinstance(value, (tuple, list)):
        raise InputError(f"{name} is {_shown(value)}; it must be a {origin.__name__}")
    if origin is tuple and len(value) > MOST_VALUES:
        raise InputError(f"{name} has {len(value)} values; at most {MOST_VALUES} are accepted")
    alike = origin is list or arguments[-1] is Ellipsis
    if alike and arguments[0] in (int, str) and all(type(one) is arguments[0] for one in value):
        # Lists of all examples are long.
        return origin(value)
    kinds = [arguments[0]] * len(value) if alike else arguments
    if len(kinds) != len(value):
        raise InputError(f"{name} is {_shown(value)}; it must have {len(kinds)} values")
    return origin(checked(item, k, f"{name}[{i}]") for i, (item, k) in enumerate(zip(value, kinds, strict=True)))


def network(values: Mapping[str, Any], kind: type) -> Any:
    """A network's config from fields of a published one: types, bounds and the config's own checks.

    Raises:
        InputError: names the field, the value and what is accepted.
    """
    config = checked(dict(values), kind, "")
    check_sizes(config)
    return config


def check_sizes(config: Any, prefix: str = "") -> None:
    """Refuse numbers of a network's config that no network has; raises `InputError` by the field's name."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_sizes(value, f"{name}.")
            continue
        if field.name in _STAGES and len(value) > _MOST_STAGES:
            raise InputError(f"{name} has {len(value)} values; at most {_MOST_STAGES} are accepted")
        least, most = int(field.name not in _FROM_0), _MOST_OF.get(field.name, MOST)
        for one in value if isinstance(value, tuple) else (value,):
            if type(one) is int and not least <= one <= most:
                raise InputError(f"{name} is {one}; it must be from {least} to {most}")
            if type(one) is float and not math.isfinite(one):
                raise InputError(f"{name} is {one}; it must be a finite number")


def _shown(value: Any, show: Any = repr) -> str:
    text = show(value)
    return text if len(text) <= 100 else text[:100] + "..."


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field of a published config that has fields itself; empty where it is null or not there."""
    found = values.get(name)
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{name} is {_shown(found)}; it must be a section with fields")
    return found or {}
