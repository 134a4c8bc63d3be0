"""Programs that are kept for the next start, and several compiled at once."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import process_environment

from cinema_jax.devices import compilation

START = """
import sys
import jax, jax.numpy as jnp
from cinema_jax.devices import compilation
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compilation.keep(sys.argv[1], "unused")
jax.jit(lambda x: jnp.tanh(x @ x))(jnp.eye(4)).block_until_ready()
print(sum("cache_hits" in name for name in events), sum("cache_misses" in name for name in events))
"""


def test_a_second_start_compiles_nothing_again(tmp_path):
    counts = []
    for _ in range(2):
        command = [sys.executable, "-c", START, str(tmp_path / "cache")]
        done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=True)
        counts.append(tuple(map(int, done.stdout.split())))
    (hits, misses), (hits_again, misses_again) = counts
    assert hits == 0 < misses
    assert (hits_again, misses_again) == (misses, 0)


@pytest.fixture
def cache_dir(monkeypatch):
    """Reads the setting, which is as before after the test."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("platform", "asked", "expected"),
    [
        ("tpu", None, "gs://bucket/run/compilation_cache"),
        ("tpu", "", None),
        ("tpu", "/cache", "/cache"),
        ("cpu", None, None),
        ("cpu", "/cache", "/cache"),
    ],
)
def test_accelerators_keep_programs_and_cpus_when_asked(cache_dir, monkeypatch, platform, asked, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    compilation.keep(asked, "gs://bucket/run/compilation_cache")
    assert cache_dir() == expected


def test_the_environment_comes_before_the_default(cache_dir, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    before = cache_dir()
    compilation.keep(None, "/default")
    assert cache_dir() == before


@pytest.mark.parametrize(
    ("platform", "steps", "environment", "expected"),
    [
        ("cpu", compilation.FEW_STEPS, {}, True),
        ("cpu", compilation.FEW_STEPS + 1, {}, False),
        ("cpu", 2, {compilation.DISABLED: "0"}, False),
        ("tpu", 2, {}, False),
    ],
)
def test_a_cpu_optimises_no_program_of_a_run_of_few_steps(monkeypatch, platform, steps, environment, expected):
    monkeypatch.delenv(compilation.DISABLED, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    told = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.append((name, value)))
    compilation.quickly(steps)
    assert told == [("jax_disable_most_optimizations", True)] * expected


def test_programs_are_compiled_with_a_line_each(caplog):
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    with caplog.at_level(logging.INFO, logger="cinema_jax"):
        programs = compilation.compile_all(
            {"sum": (jax.jit(jnp.sum), (shape,)), "double": (jax.jit(lambda x: 2 * x), (shape,))}
        )
    x = np.arange(3, dtype=np.float32)
    assert float(programs["sum"](x)) == 3.0
    np.testing.assert_array_equal(programs["double"](x), 2 * x)
    told = " ".join(caplog.messages)
    assert all(text in told for text in ("compiled sum in", "compiled double in", "2 programs compiled in"))


def test_a_program_that_cannot_be_compiled_is_told():
    with pytest.raises(TypeError, match="incompatible shapes"):
        compilation.compile_all({"bad": (jax.jit(jnp.add), (jnp.zeros(3), jnp.zeros(4)))})
