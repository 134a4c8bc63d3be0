"""The names under which a judge is stored, and how its folder is read and written."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cinema_jax.errors import InputError
from cinema_jax.evaluation.judge.config import JudgeConfig
from cinema_jax.evaluation.judge.model import Judge
from cinema_jax.experiment.parts import read_json, write_json
from cinema_jax.inputs.typed import network
from cinema_jax.weights import rules
from cinema_jax.weights.rules import CONV2D, Rule, conv, linear, norm
from cinema_jax.weights.shards import write_tensors
from cinema_jax.weights.tensors import open_tensors


def _block(name: str) -> tuple[Rule, ...]:
    path = name.replace(".", "/")
    return (
        *norm(f"{name}.norm1", f"{path}/norm1", bias=False),
        *conv(f"{name}.conv1", f"{path}/conv1", CONV2D),
        *norm(f"{name}.norm2", f"{path}/norm2", bias=False),
        *conv(f"{name}.conv2", f"{path}/conv2", CONV2D),
    )


TABLE: tuple[Rule, ...] = (
    *(rule for name in ("stem", "down", "deeper") for rule in conv(name, name, CONV2D)),
    *_block("blocks.{i}"),
    *_block("deep_blocks.{i}"),
    *_block("last"),
    *norm("norm", "norm", bias=False),
    *(rule for name in ("up", "embed", "heat", "pool", "background") for rule in linear(name, name)),
    Rule("log_scale", "log_scale"),
)


def write_judge(folder: Path, config: JudgeConfig, params: Mapping[str, Any]) -> None:
    """Write a judge's folder, `config.json` and `model.safetensors` in half precision, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = rules.publish({path: np.asarray(x) for path, x in params.items()}, TABLE)
    write_tensors(folder / "model.safetensors", {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    write_json(folder / "config.json", {"_class_name": "Judge", **dataclasses.asdict(config)})


def read_judge(folder: Path) -> tuple[JudgeConfig, Judge]:
    """The judge in a folder, in fp32.

    Raises:
        InputError: the folder holds none, or its weights are not those that its config.json describes.
    """
    values = read_json(folder / "config.json")
    if values.pop("_class_name", None) != "Judge":
        raise InputError(f"{folder / 'config.json'} does not describe a Judge")
    try:
        config = network(values, JudgeConfig)
    except InputError as error:
        raise InputError(f"{folder / 'config.json'} does not describe a Judge: {error}") from None
    expected = rules.flatten(nnx.eval_shape(lambda: Judge(config, rngs=nnx.Rngs(0))))
    arrays = rules.import_weights(open_tensors(folder), TABLE, expected)
    judge = Judge(config, rngs=nnx.Rngs(0))
    rules.load_into(judge, {path: jnp.asarray(np.asarray(x), jnp.float32) for path, x in arrays.items()})
    return config, judge
