"""Measuring time, for the other scripts of this folder."""

import time
from collections.abc import Callable

import jax


def seconds(function: Callable[[], object], *, pause: float = 0.0) -> float:
    """Of one call, from `pause` seconds on: other libraries' threads fall asleep meanwhile."""
    time.sleep(pause)
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start
