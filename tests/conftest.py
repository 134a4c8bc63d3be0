"""Every signature's shapes are checked at run time in tests."""

import functools
import gc
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test may ask the hub: names that hypothesis makes up look like repositories.
os.environ["HF_HUB_OFFLINE"] = "1"
# Most of the suite's time is compilation, and tiny programs need no optimisation. XLA's older emitter of kernels takes
# half the time of the newer one, which builds a compiler for each; and two workers leave no processor for more threads.
# Each once, though every process has them from the one that started it: compiled programs are found by these words.
os.environ["XLA_FLAGS"] = " ".join(
    dict.fromkeys(
        [
            *os.environ.get("XLA_FLAGS", "").split(),
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    )
)
# What one test has compiled, all others have, in the suite's other processes too, until the first of them ends.
os.environ.setdefault("CINEMA_TESTS_PID", str(os.getpid()))
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tempfile.mkdtemp("_compiled")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping
import pytest
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def _of_arrays(hint: Any) -> bool:
    """Whether a type says the shape of an array."""
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(_of_arrays, get_args(hint)))


def _check(function: Callable) -> Callable:
    """A function whose signature is checked at each call, its letters being its own.

    As jaxtyping's decorator does it, which checks what comes in twice, and finds out what is called what: a fifth of
    the time of a test that trains. Here it has classes, generators, and sizes that an argument says ("B {size}"). What
    a function makes inside itself is decorated each time: only where it says shapes.
    """
    hints = getattr(function, "__annotations__", {}).values()
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function) or any("{" in str(x) for x in hints):
        return _jaxtyped(function, typechecker=beartype)
    if not hints or ("<locals>" in function.__qualname__ and not any(map(_of_arrays, hints))):
        return function
    checked = beartype(function)

    @functools.wraps(function)
    def in_its_own_context(*arguments, **options):
        with _jaxtyped("context"):
            return checked(*arguments, **options)

    return in_its_own_context


# What the hook puts before every function and class of the package.
jaxtyping.jaxtyped = lambda *, typechecker: _check
jaxtyping.install_import_hook("cinema_jax", "beartype.beartype")

# The files that take longest, begun first: begun last, one of them would be all that runs in the end.
LONGEST = (
    "training/test_hosts.py",
    "test_road.py",
    "training/test_disturbed.py",
    "training/test_loop.py",
    "web/test_page.py",
    "exchange/test_convert.py",
    "planning/test_planning.py",
    "test_extending.py",
    "test_first_pod_run.py",
    "evaluation/test_evaluate.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; needs `--no-loadscope-reorder`, without which pytest-xdist has an order of its own."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.location[0].removeprefix("tests/"), len(place)))


def pytest_collection_finish() -> None:
    """Tracing makes many objects that stay: a tenth of the time is spent on looking for others among all of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
    """Programs do not pile up: a process that holds those of all modules takes gigabytes."""
    yield
    jax.clear_caches()


def pytest_unconfigure() -> None:
    """The folder of compiled programs goes with the process that made it."""
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if os.environ["CINEMA_TESTS_PID"] == str(os.getpid()) and folder.endswith("_compiled"):
        shutil.rmtree(folder, ignore_errors=True)
