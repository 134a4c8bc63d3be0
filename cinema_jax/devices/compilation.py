"""Compiling: kept from one start to the next, and several programs at once."""

import logging
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger(__name__)

# Steps of a stage up to which a CPU takes less time for them than for optimising their programs.
FEW_STEPS = 5
DISABLED = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def quickly(steps: int) -> None:
    """On a CPU compile without optimisation from here on, where no stage of a run has more than a few steps.

    `JAX_DISABLE_MOST_OPTIMIZATIONS` in the environment, which jax reads itself, comes before that.
    """
    if steps <= FEW_STEPS and jax.default_backend() == "cpu" and DISABLED not in os.environ:
        jax.config.update(DISABLED.lower(), True)
        logger.info("of so few steps programs are compiled without optimisation; %s=0 optimises them", DISABLED)


def keep(asked: str | None, default: str) -> None:
    """Keep what is compiled from here on in a folder, and take from there what was compiled before.

    Only the first process writes: with several hosts the folder must be one that all of them see.

    Args:
        asked: the folder that the user named, "" for none; None: `JAX_COMPILATION_CACHE_DIR`, which jax reads itself,
            or else `default` on accelerators. Programs for CPUs are kept only where that is asked for: they run on
            processors like the one that compiled them, and XLA warns of others, and of some that are alike.
    """
    if asked is None and ("JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu"):
        return
    folder = default if asked is None else asked
    if folder and "://" not in folder:
        folder = str(Path(folder).expanduser())
    jax.config.update("jax_compilation_cache_dir", folder or None)


def tried(
    lowered: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> tuple[jax.stages.Compiled | None, int | None]:
    """Compile a program, and say where a device lacks the memory for it.

    Returns:
        the executable; or None, and the bytes that the compiler says it needs, if it does.
    """
    try:
        return lowered.compile(compiler_options=options), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\(([\d.]+)G\) exceeds", str(error))
        return None, int(float(sizes[0]) * 2**30) if sizes else None


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """What a program takes on each device, its arguments and results included."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held + sizes.temp_size_in_bytes


def for_shapes(function: Any, others: tuple[Any, ...], batches: Mapping[str, Mapping[str, Any]]) -> Any:
    """`function(*others, batch)`, compiled beforehand for every shape of batch.

    Args:
        function: what `jax.jit` made.
        others: its first arguments, or arrays like them.
        batches: name (for the log) to arrays, or `jax.ShapeDtypeStruct`s, like those of a batch.
    """

    compiled = compile_all({name: (function, (*others, batch)) for name, batch in batches.items()})
    programs = {shapes_of(batch): compiled[name] for name, batch in batches.items()}
    return lambda *arguments: programs[shapes_of(arguments[-1])](*arguments)


def shapes_of(batch: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What tells batches apart that need programs of their own."""
    return tuple(sorted((name, x.shape) for name, x in batch.items()))


def compile_all(programs: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> dict[str, jax.stages.Compiled]:
    """Compile several programs, lowered one after the other and compiled in parallel threads.

    Args:
        programs: name to a function that `jax.jit` made and its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        name to the executable, which is called with such arguments.
    """
    started = time.perf_counter()

    def compile_one(name: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        begun = time.perf_counter()
        compiled = lowered.compile()
        logger.info("compiled %s in %.1f s", name, time.perf_counter() - begun)
        return compiled

    # Lowering holds Python's lock, the compiler does not.
    with ThreadPoolExecutor(max(1, len(programs))) as pool:
        waiting = {}
        for name, (function, arguments) in programs.items():
            waiting[name] = pool.submit(compile_one, name, function.lower(*arguments))
        compiled = {name: future.result() for name, future in waiting.items()}
    logger.info("%d programs compiled in %.1f s", len(compiled), time.perf_counter() - started)
    return compiled
