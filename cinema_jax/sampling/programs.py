"""What a sampler compiles, and for which arguments: by these `plan` compiles what `generate` runs."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cinema_jax.cinema import Cinema, Params
from cinema_jax.config import Config
from cinema_jax.devices import sharding
from cinema_jax.diffusion.discrete import discrete_start, discrete_step
from cinema_jax.diffusion.guidance import Branch, guided
from cinema_jax.diffusion.samplers import solver_step, start
from cinema_jax.models.chunks import latent_shape
from cinema_jax.models.layers import platform

# What a row of `samplers.solver_steps` and of `discrete.discrete_steps` holds.
_ROW, _DISCRETE_ROW = 10, 7


def prompt_readers(config: Config) -> tuple[str, ...]:
    """The parts that read the prompt."""
    return {"mllm": ("mllm", "aligner"), "t5": ("t5",), "both": ("mllm", "t5")}[config.condition.conditioner]


def condition_parts(config: Config) -> tuple[str, ...]:
    """The parts that make a request's conditions."""
    vae = ("vae",) if config.condition.entities else ()
    clip = ("clip",) if config.condition.reference_channels == "masked" else ()
    return (*prompt_readers(config), *vae, *clip)


def reading(configs: Mapping[str, Any]) -> dict[str, Any]:
    """Configs of the same parts, the MLLM's without its output layer: whoever reads prompts does not need that."""
    without = {"output_layer": False}
    return {name: dataclasses.replace(x, **without) if name == "mllm" else x for name, x in configs.items()}


def of_parts(params: Params, names: tuple[str, ...]) -> Params:
    """Those of `params` that belong to some parts."""
    return {path: x for path, x in params.items() if path.split("/")[0] in names}


def streamed(path: str) -> bool:
    """Whether a parameter may stay with the host while it is used: the kernels of the transformer's stacked layers.

    Their vectors are few bytes, and TPUs cannot take rows of a host's arrays of vectors.
    """
    return path.startswith("dit/") and path.endswith("/kernel") and re.search(sharding.STACKED, path) is not None


class Layout:
    """How what is not weights lies on a sampler's mesh; without a mesh everything is left as it is."""

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh
        self.rows = None if mesh is None else sharding.batch_sharding(mesh)
        self._whole = None if mesh is None else sharding.replicated(mesh)

    def in_use(self) -> contextlib.AbstractContextManager[Any]:
        """What is traced and run in this context is split over the mesh."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def filled(self, count: int) -> int:
        """The least number of rows, from `count` on, that the mesh splits evenly."""
        return count if self.mesh is None else count + -count % sharding.batch_parts(self.mesh)

    def on_rows(self, tree: Any) -> Any:
        """Arrays with a leading batch axis on the mesh, filled up with copies of their first row.

        They lie on the mesh already, or every process holds them in full.
        """
        if self.mesh is None:
            return tree

        def put(x):
            there = isinstance(x, jax.Array) and x.sharding.device_set == self.rows.device_set
            x, library = (x, jnp) if there else (np.asarray(x), np)
            if missing := self.filled(len(x)) - len(x):
                x = library.concatenate([x, library.repeat(x[:1], missing, axis=0)])
            return jax.device_put(x, self.rows) if there else self._from_host(x, self.rows)

        return jax.tree.map(put, tree)

    def whole(self, x: np.ndarray) -> Any:
        """An array that every device needs all of."""
        return x if self.mesh is None else self._from_host(x, self._whole)

    def _from_host(self, x: np.ndarray, place: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, place, x.__getitem__)

    def planned(self, shape: tuple[int, ...], dtype: Any, whole: bool = False) -> jax.ShapeDtypeStruct:
        """An abstract array that lies as `on_rows`, or as `whole`, would put it."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._whole if whole else self.rows)


def cut(tree: Any, count: int) -> Any:
    """The first `count` rows of arrays, without those that filled them up."""
    return jax.tree.map(lambda x: x if len(x) == count else x[:count], tree)


class Programs:
    """Jitted functions of the parameters of some parts and of a batch, whose rows the mesh splits evenly.

    With `streams` what is `streamed` lies with the host.
    """

    def __init__(self, cinema: Cinema, mesh: Mesh | None, streams: bool = False):
        self.cinema, self.layout, self.streams = cinema, Layout(mesh), streams
        jit = functools.partial(jax.jit, out_shardings=self.layout.rows)
        self.read, self.encode = map(jit, (cinema.conditions, cinema.encode_video))
        # Whole, and in tiles.
        self.decode = {tiled: jit(functools.partial(cinema.decode_video, tiled=tiled)) for tiled in (False, True)}
        self.step, self.discrete_step = jit(self._step), jit(self._discrete_step)

    def _step(self, params, factors, conditions, state, row):
        return solver_step(_guided(self.cinema.velocity, params, factors, conditions), state, row)

    def _discrete_step(self, params, factors, conditions, state, row, noise):
        return discrete_step(_guided(self.cinema.predict_v, params, factors, conditions), state, row, noise)

    def planned(
        self,
        params: Params,
        example: Mapping[str, np.ndarray],
        branches: tuple[Branch, ...],
        video: tuple[int, int, int],
        solver: str | None,
        count: int,
        tiled: bool,
    ) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
        """What is computed for `count` requests, by name and in this order: functions and abstract arguments.

        The arguments are in all else those that the functions are called with: who has compiled for them has compiled.

        Args:
            params: of all parts, with their shardings; they may be abstract.
            example: what `Preprocessor.conditions` makes of any request of this size.
            video: frames, height and width.
            solver: a discrete one; None: one of a flow.
            tiled: whether videos are decoded in tiles.
        """
        layout, config, names = self.layout, self.cinema.config, self.cinema.part_configs
        params = {path: _on_device(x, self.streams and streamed(path)) for path, x in params.items()}
        reading, dit, vae = (of_parts(params, names) for names in (condition_parts(config), ("dit",), ("vae",)))
        with layout.in_use():
            batch = {name: layout.planned((count, *x.shape), x.dtype) for name, x in example.items()}
            latents = layout.planned((count, *latent_shape(names["vae"], *video)), jnp.float32)
            told = self._rows_of(self.cinema.conditions, reading, batch)
            factors = layout.planned((len(branches),), jnp.float32, whole=True)
            before, columns = (start, _ROW) if solver is None else (discrete_start, _DISCRETE_ROW)
            row = layout.planned((columns,), jnp.float32, whole=True)
            step = (dit, factors, dict.fromkeys(branches, told), self._rows_of(before, latents), row)
            if solver is not None:
                step = (*step, latents if solver == "dpm" else None)
        return {
            "conditions": (self.read, (reading, batch)),
            f"a step of {len(branches)} branches": (self.step if solver is None else self.discrete_step, step),
            "decoding": (self.decode[tiled], (vae, latents)),
        }

    def _rows_of(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, abstract."""
        shapes = jax.eval_shape(function, *arguments)
        return jax.tree.map(lambda x: self.layout.planned(x.shape, x.dtype), shapes)


def _on_device(x: Any, streams: bool) -> jax.ShapeDtypeStruct:
    """A parameter, abstract, where it is used."""
    kind = sharding.HOST if streams else "device"
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding and x.sharding.with_memory_kind(kind))


def _guided(network, params, factors, conditions):
    """A method of `Cinema` as a guided field of z and time."""
    # A jitted function is handed a dictionary in the order of its keys, which is that of `guidance_coefficients`.
    coefficients = dict(zip(sorted(conditions), factors, strict=True))
    # On accelerators one video of the released size is work enough, and memory is short.
    return guided(functools.partial(network, params), conditions, coefficients, in_turn=platform() != "cpu")
