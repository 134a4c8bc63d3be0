"""The five networks a run is made of, and how each comes from and goes to a folder in the Hugging Face layout.

A *part* is one network: `vae`, `t5`, `mllm`, `aligner`, `dit`. Its folder holds `config.json` and `*.safetensors` under
the published tensor names, so that diffusers and transformers read it as well. Inside the program all parameters live
in one flat dictionary, `{"dit/blocks/to_q/kernel": array}`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cinema_jax import weights
from cinema_jax.errors import InputError
from cinema_jax.models.aligner import model as aligner
from cinema_jax.models.aligner import weights as aligner_weights
from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.cogvideox import transformer as cogvideox
from cinema_jax.models.cogvideox import vae as cogvideox_vae
from cinema_jax.models.cogvideox import vae_weights as cogvideox_vae_weights
from cinema_jax.models.cogvideox import weights as cogvideox_weights
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.qwen_vl import config as qwen_config
from cinema_jax.models.qwen_vl import model as qwen
from cinema_jax.models.qwen_vl import weights as qwen_weights
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig
from cinema_jax.models.t5 import model as t5
from cinema_jax.models.t5 import weights as t5_weights
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.wan import vae as wan
from cinema_jax.models.wan import weights as wan_weights
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.tensors import Tensor, open_tensors, write_tensors

PACKAGED = Path(__file__).parent / "assets"
TRANSFORMERS_FILE, DIFFUSERS_FILE = "model.safetensors", "diffusion_pytorch_model.safetensors"

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one part is built, read and written."""

    # The class of its config, and of the network in published configs where several may stand in for this part.
    config: type
    build: Callable[..., nnx.Module]
    table: Callable[[Any], Sequence[weights.Rule]]
    config_from_hf: Callable[[dict], Any]
    config_to_hf: Callable[[Any], dict]
    class_name: str = ""
    # The weights' file: diffusers opens no other. When reading, any name will do.
    file: str = TRANSFORMERS_FILE
    # What published files carry twice, taken out after reading and put back before writing.
    after_reading: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors
    before_writing: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors


# What may stand for each part; the first one where a config does not say.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "vae": (
        Kind(
            WanVAEConfig,
            wan.WanVAE,
            lambda c: wan_weights.TABLE,
            wan_weights.config_from_hf,
            wan_weights.config_to_hf,
            class_name="AutoencoderKLWan",
            file=DIFFUSERS_FILE,
        ),
        Kind(
            CogVideoXVAEConfig,
            cogvideox_vae.CogVideoXVAE,
            lambda c: cogvideox_vae_weights.TABLE,
            cogvideox_vae_weights.config_from_hf,
            cogvideox_vae_weights.config_to_hf,
            class_name="AutoencoderKLCogVideoX",
            file=DIFFUSERS_FILE,
        ),
    ),
    "t5": (
        Kind(
            T5Config,
            t5.T5Encoder,
            lambda c: t5_weights.TABLE,
            t5_weights.config_from_hf,
            t5_weights.config_to_hf,
            after_reading=lambda tensors, config: t5_weights.untie(tensors),
            before_writing=lambda tensors, config: t5_weights.tie(tensors),
        ),
    ),
    "mllm": (
        Kind(
            Qwen2VLConfig,
            qwen.Qwen2VL,
            qwen_weights.table,
            qwen_config.config_from_hf,
            qwen_config.config_to_hf,
            after_reading=qwen_weights.drop_tied_head,
        ),
    ),
    "aligner": (
        Kind(
            AlignerConfig,
            aligner.AlignerNet,
            lambda c: aligner_weights.TABLE,
            lambda values: AlignerConfig(**values),
            dataclasses.asdict,
        ),
    ),
    "dit": (
        Kind(
            CogVideoXConfig,
            cogvideox.CogVideoXTransformer,
            lambda c: cogvideox_weights.TABLE,
            cogvideox_weights.config_from_hf,
            cogvideox_weights.config_to_hf,
            file=DIFFUSERS_FILE,
        ),
    ),
}


def _kind(name: str, config: Any) -> Kind:
    return next(kind for kind in KINDS[name] if isinstance(config, kind.config))


def part_folder(name: str, folder: str) -> Path:
    """Where a part lies: a packaged one under its name, the user's own as given."""
    return PACKAGED / name if folder == "packaged" else Path(folder)


def read_config(name: str, folder: Path) -> Any:
    """The config of a part's folder; InputError when there is none or it is not of this kind."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} holds no config.json, so there is no {name} to read here")
    values = read_json(file)
    try:
        named = [kind for kind in KINDS[name] if kind.class_name == values.get("_class_name")]
        return (named or KINDS[name])[0].config_from_hf(values)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{file} does not describe a {name} this project knows: {error}") from error


def structure(name: str, config: Any) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """A part's graph definition and the shapes of its parameters, without allocating any."""
    module = nnx.eval_shape(lambda: _kind(name, config).build(config, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    assert not nnx.to_flat_state(rest), f"{name} holds state that is no parameter: {rest}"
    return graph, {f"{name}/{path}": leaf for path, leaf in weights.flatten(params).items()}


def initialise(name: str, config: Any, seed: int) -> dict[str, np.ndarray]:
    """Random parameters."""

    @jax.jit
    def create(key):
        return nnx.state(_kind(name, config).build(config, rngs=nnx.Rngs(key)), nnx.Param)

    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1
    state = create(jax.random.fold_in(jax.random.key(seed), salt))
    return {f"{name}/{path}": np.asarray(leaf) for path, leaf in weights.flatten(state).items()}


def read(name: str, config: Any, folder: Path) -> dict[str, Tensor]:
    """A part's parameters from its folder, in fp32; each is read as far and as often as somebody asks for it."""
    (_, expected), kind = structure(name, config), _kind(name, config)
    expected = {path.removeprefix(f"{name}/"): leaf for path, leaf in expected.items()}
    tensors = kind.after_reading(open_tensors(folder), config)
    arrays = weights.import_weights(tensors, kind.table(config), expected)
    return {f"{name}/{path}": array.astype(np.float32) for path, array in arrays.items()}


def write(name: str, config: Any, params: Mapping[str, np.ndarray], folder: Path, dtype: Any = np.float32) -> None:
    """Write a part's folder, tensors under their published names: diffusers or transformers read it as it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {path.removeprefix(f"{name}/"): np.asarray(x) for path, x in params.items() if path.startswith(f"{name}/")}
    kind = _kind(name, config)
    tensors = kind.before_writing(weights.export_weights(own, kind.table(config)), config)
    # Each whole or not at all, and the config last: a folder with a config is complete.
    # Older versions of transformers refuse files that do not say whose layout this is.
    write_tensors(folder / kind.file, {k: x.astype(dtype) for k, x in tensors.items()}, {"format": "pt"})
    write_json(folder / "config.json", kind.config_to_hf(config))


def read_json(file: Path) -> dict[str, Any]:
    """The fields of a JSON file; InputError when it cannot be read or holds no object."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no object with fields")
    return values


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, under a temporary name until it is whole."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(file)
