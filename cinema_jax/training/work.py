"""How much a training step computes, and how fast this machine's chips could at best."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh

from cinema_jax.cinema import Cinema
from cinema_jax.devices.chips import CHIPS
from cinema_jax.devices.compilation import shapes_of
from cinema_jax.devices.flops import matmul_flops
from cinema_jax.training.stages import Stage
from cinema_jax.training.step import value_and_grad_of

# Dense bf16 TFLOP/s of one chip, from the vendors' data sheets, by the beginning of jax's `device_kind`; the first that
# fits counts.
PEAKS = {
    "TPU v4 lite": 138.0,
    "TPU v5e": CHIPS["v5e"].flops / 1e12,
    **{chip.kind: chip.flops / 1e12 for chip in CHIPS.values()},
    "TPU v6": CHIPS["v6e"].flops / 1e12,
    "NVIDIA A100": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}
# A device that no attention kernel is written for: the products are then plain ones, which can be counted.
_NO_DEVICE = AbstractDevice(device_kind="none", num_cores=None, platform="none")

# Steps before a shape of batch is looked at: tracing holds Python's lock, which the first steps need for themselves.
_FIRST_STEPS = 3

# Shapes and types of a batch.
Shapes = Mapping[str, jax.ShapeDtypeStruct]


def peak_tflops(device_kind: str) -> float | None:
    """What a chip computes at best, in TFLOP/s; None for one that is not in the table."""
    return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), None)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step on one batch computes, over all chips."""

    # Floating-point operations of the products in the forward and backward pass: what the model needs, recomputed
    # activations not included. A frozen part counts once, a trained one three times.
    flops: int
    # Tokens of the video transformer: text, video and references, without padding. None where it is not trained.
    tokens: int | None


def work(stage: Stage, cinema: Cinema, trained: list[str], batch: Shapes, remat: str = "none") -> Work:
    """Count a stage's step; a few seconds of tracing, without a device.

    Args:
        trained: paths of the trained parameters.
        remat: what the transformer's backward pass finds (`activations.REMAT`), to count what it computes again.
    """
    configs = dict(cinema.part_configs)
    if "dit" in configs:
        configs["dit"] = dataclasses.replace(configs["dit"], remat=remat)
    loss = stage.loss(Cinema(cinema.config, configs))
    params = {path: cinema.shapes[path] for path in trained}
    frozen = {path: shape for path, shape in cinema.shapes.items() if path not in params}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), batch["index"].shape[0]))

    def gradient(params, frozen, batch, keys):
        return value_and_grad_of(lambda params: loss({**frozen, **params}, batch, keys))(params)

    return Work(products(gradient, (params, frozen, batch, keys)), dit_tokens(cinema, batch))


def products(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    """Floating-point operations of the products in one call, on however many devices; traced, not run."""

    def plain(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x

    # Not on the mesh that the arguments may lie on.
    arguments = jax.tree.map(plain, arguments)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=_NO_DEVICE)):
        return matmul_flops(function, *arguments)


def dit_tokens(cinema: Cinema, batch: Shapes) -> int | None:
    """Tokens of a training batch in the video transformer, those of absent references included; None without videos."""
    if "latents" not in batch:
        return None
    references, entities = batch.get("references"), None
    if references is not None and references.shape[1] and cinema.config.condition.entities:
        entities = jax.eval_shape(cinema.encode_references, cinema.shapes, references).shape[1:]
    size, *video = batch["latents"].shape
    return size * cinema.part_configs["dit"].tokens(tuple(video), entities)


class WorkCounter:
    """Counts the work of the steps that are done. Every shape of batch is looked at once, in a thread of its own."""

    def __init__(self, stage: Stage, cinema: Cinema, trained: list[str]):
        self._of = (stage, cinema, trained)
        self._thread = ThreadPoolExecutor(1)
        self._found: dict[Any, Future[Work]] = {}
        # Steps on each shape, in all and since the last call of `rates`.
        self._seen: Counter[Any] = Counter()
        self._steps: Counter[Any] = Counter()
        # Of a step, in the mean of those since the last call, once all their shapes have been looked at.
        self.step_flops: int | None = None
        self._chips = jax.device_count()
        self._peak = peak_tflops(jax.devices()[0].device_kind)

    def add(self, batch: Mapping[str, jax.Array]) -> None:
        """A step on such a batch was done."""
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
        key = shapes_of(shapes)
        self._seen[key] += 1
        self._steps[key] += 1
        if self._seen[key] == _FIRST_STEPS:
            self._found[key] = self._thread.submit(work, *self._of, shapes)

    def rates(self, seconds: float) -> dict[str, float]:
        """Tokens and TFLOP/s, and MFU, of the steps since the last call, which took `seconds`; none before all of their
        shapes have been looked at."""
        steps, self._steps = self._steps, Counter()
        if not all(key in self._found and self._found[key].done() for key in steps):
            return {}
        done = [(count, self._found[key].result()) for key, count in steps.items()]
        if done:
            self.step_flops = round(sum(count * one.flops for count, one in done) / sum(count for count, _ in done))
        tflops = sum(count * one.flops for count, one in done) / seconds / self._chips / 1e12
        rates = {"tflops_per_chip": tflops}
        if self._peak:
            rates["mfu"] = tflops / self._peak
        if all(one.tokens for _, one in done):
            rates["tokens_per_second"] = sum(count * one.tokens for count, one in done) / seconds
        return rates

    def close(self) -> None:
        """Wait for nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)
