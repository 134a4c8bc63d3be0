"""What the parts share: results as lines of JSON, times, and random parameters on the device."""

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers")
RESULTS = "gpu.jsonl"


class Options(NamedTuple):
    """What a part is told; `seconds` are its own limit."""

    out: Path
    tiny: bool
    layers: tuple[int, ...]
    config: str
    train: str
    seconds: float

    @classmethod
    def of(cls, given: argparse.Namespace, seconds: float) -> "Options":
        """Those of the command line."""
        layers = tuple(int(x) for x in given.layers.split(","))
        return cls(given.out, given.tiny, layers, given.config, given.train, seconds)


def card() -> str:
    """The first card's name and driver as the driver gives them; without one, the processor's architecture."""
    try:
        call = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return f"no card, {platform.machine()}"


def versions() -> dict[str, str]:
    """Of the packages that decide what is computed, without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


class Record:
    """Appends the results of a part, one line each, at once."""

    def __init__(self, part: str, options: Options, card: str, *, device: bool):
        """`device`: whether JAX computes in this process; it must be on a GPU then, unless all is tiny."""
        self.part, self.options = part, options
        self._same = {"part": part, "card": card, "tiny": options.tiny, **versions()}
        if device:
            import jax

            if not options.tiny and jax.default_backend() != "gpu":
                raise SystemExit(f"JAX finds no GPU here, only {jax.devices()[0].device_kind!r}; --tiny needs none")
            self._same["device"] = jax.devices()[0].device_kind

    def __call__(self, item: str, **values: Any) -> None:
        """One result."""
        line = json.dumps({"item": item, **values, **self._same, "time": round(time.time())})
        print(f"{self.part}: {item}: {json.dumps(values)}", flush=True)
        with (self.options.out / RESULTS).open("a") as file:
            file.write(f"{line}\n")

    def attempt(self, item: str, measure: Callable[[], Mapping[str, Any]]) -> None:
        """The result of `measure`, or why there is none: what a card refuses (memory, a kernel) is a result too, and
        must not cost the ones after it."""
        try:
            self(item, **measure())
        except Exception as error:
            self(item, error=f"{type(error).__name__}: {error}"[:600])

    def earlier(self, **wanted: Any) -> list[dict[str, Any]]:
        """The lines of the same card and size so far that have these values."""
        file = self.options.out / RESULTS
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        wanted |= {name: self._same[name] for name in ("card", "tiny")}
        return [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]

    def rates(self, seconds: float, flops: int, tokens: int | None = None) -> dict[str, Any]:
        """Speed, and its share of the fastest product that this file has of the card."""
        tflops = flops / seconds / 1e12
        ceiling = max((line["tflops"] for line in self.earlier(part="matmul") if "tflops" in line), default=None)
        found = {"seconds": seconds, "tflop": flops / 1e12, "tflops": tflops}
        found["share"] = tflops / ceiling if ceiling else None
        return found if tokens is None else found | {"tokens_per_second": tokens / seconds}


def median(run: Callable[[], Any], wait: Callable[[Any], Any], *, least: int = 3, enough: float = 2.0) -> float:
    """Seconds of one call, the median of `least` or more until they took `enough` seconds; call it once before."""
    times: list[float] = []
    while len(times) < least or (sum(times) < enough and len(times) < 20):
        began = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def random_params(shapes: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Random parameters on JAX's default device: activations keep their size. {path: anything with a shape}."""
    import jax

    @jax.jit
    def make(key):
        return {path: _drawn(jax.random.fold_in(key, i), path, shapes[path].shape, dtype) for i, path in order}

    order = list(enumerate(sorted(shapes)))
    return make(jax.random.key(0))


def _drawn(key: Any, path: str, shape: tuple[int, ...], dtype: Any) -> Any:
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(key, shape, dtype)
    if path.endswith("kernel"):
        # Of three axes the first one is that of stacked layers.
        inputs = math.prod(shape[1 if len(shape) == 3 else 0 : -1])
        return x * jnp.asarray(inputs**-0.5, dtype)
    return x if "embedding" in path else jnp.asarray(0.05, dtype) * x + jnp.asarray(path.endswith("scale"), dtype)
