"""The names under which an AlignerNet is stored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cinema_jax.inputs.typed import network
from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.weights.rules import Rule, linear, norm

# There is no published module: files hold our own names, in PyTorch's layout like those of all other parts.
_PLAIN: tuple[Rule, ...] = (
    Rule("latents", "latents"),
    *linear("input_projection", "input_projection"),
    *(r for x in ("latents", "states", "mlp") for r in norm(f"layers.{{layer}}.{x}_norm", f"layers/{x}_norm")),
    *(r for x in ("q", "k", "v", "o", "up", "down") for r in linear(f"layers.{{layer}}.{x}", f"layers/{x}")),
    *linear("output_projection", "output_projection"),
    *norm("output_norm", "output_norm"),
)
_GATE = linear("gate", "gate")


def table(config: AlignerConfig) -> tuple[Rule, ...]:
    """The rules of a network: gated ones have more."""
    return _PLAIN + _GATE if config.gated else _PLAIN


def config_from_hf(values: Mapping[str, Any]) -> AlignerConfig:
    """The sizes in an aligner's `config.json`."""
    return network({name: value for name, value in values.items() if name != "_class_name"}, AlignerConfig)


def config_to_hf(config: AlignerConfig) -> dict[str, Any]:
    """The `config.json` of an aligner."""
    return {"_class_name": "AlignerNet", **dataclasses.asdict(config)}
