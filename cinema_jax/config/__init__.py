"""The configuration: frozen dataclasses, each field documented once, and the way from and to a ConfigDict.

A config file in `configs/` starts from `default()`, a `ConfigDict` of every field below, and changes what it needs. The
command line changes single fields (`--config.finetune.steps=200`). `parse` then gives the frozen `Config`, or refuses
by name what does not exist or has the wrong type.
"""

from cinema_jax.config.checks import dropout
from cinema_jax.config.parsing import default, parse, to_dict
from cinema_jax.config.sections import (
    CONDITIONED,
    ON_CLIPS,
    STAGES,
    Config,
    DataConfig,
    ImageFirstStageConfig,
    StageConfig,
    WeightsConfig,
)

__all__ = [
    "CONDITIONED",
    "ON_CLIPS",
    "STAGES",
    "Config",
    "DataConfig",
    "ImageFirstStageConfig",
    "StageConfig",
    "WeightsConfig",
    "default",
    "dropout",
    "parse",
    "to_dict",
]
