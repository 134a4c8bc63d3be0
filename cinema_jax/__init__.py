"""CINEMA in JAX: coherent video of several subjects from independent reference images (arXiv 2503.10391)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cinema_jax.errors import InputError
    from cinema_jax.sampling.mllm import MLLM
    from cinema_jax.sampling.pipeline import Pipeline
    from cinema_jax.sampling.video import Video

__version__ = "0.1.0"
__all__ = ["MLLM", "InputError", "Pipeline", "Video", "__version__"]

# Where each public name lives. They are imported when somebody asks for one: commands read their flags without JAX.
_HOMES = {
    "InputError": "cinema_jax.errors",
    "MLLM": "cinema_jax.sampling.mllm",
    "Pipeline": "cinema_jax.sampling.pipeline",
    "Video": "cinema_jax.sampling.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cinema_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
