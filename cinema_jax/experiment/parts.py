"""The networks a run is made of, and how each comes from and goes to a folder in the Hugging Face layout.

A *part* is one network: `vae`, `t5`, `mllm`, `clip`, `aligner`, `dit`. Its folder holds `config.json` and
`*.safetensors` under the published tensor names, so that diffusers and transformers read it as well. Inside the program
all parameters live in one flat dictionary, `{"dit/blocks/to_q/kernel": array}`.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.experiment import hub
from cinema_jax.inputs import shipped
from cinema_jax.inputs.files import read_json, write_json
from cinema_jax.models.aligner import model as aligner
from cinema_jax.models.aligner import weights as aligner_weights
from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.clip import model as clip
from cinema_jax.models.clip import weights as clip_weights
from cinema_jax.models.clip.config import CLIPVisionConfig
from cinema_jax.models.cogvideox import transformer as cogvideox
from cinema_jax.models.cogvideox import vae as cogvideox_vae
from cinema_jax.models.cogvideox import vae_weights as cogvideox_vae_weights
from cinema_jax.models.cogvideox import weights as cogvideox_weights
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.quantised import large_kernels, quantise
from cinema_jax.models.qwen_vl import config as qwen_config
from cinema_jax.models.qwen_vl import model as qwen
from cinema_jax.models.qwen_vl import weights as qwen_weights
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig
from cinema_jax.models.t5 import model as t5
from cinema_jax.models.t5 import weights as t5_weights
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.wan import transformer as wan
from cinema_jax.models.wan import transformer_weights as wan_weights
from cinema_jax.models.wan import vae as wan_vae
from cinema_jax.models.wan import weights as wan_vae_weights
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.weights import quantised, rules
from cinema_jax.weights.quantised import SCALE
from cinema_jax.weights.quantised import Kind as Codes
from cinema_jax.weights.rules import Array, Published
from cinema_jax.weights.shards import read_along, write_tensors
from cinema_jax.weights.stored import open_stored, tree_names
from cinema_jax.weights.tensors import WeightError, open_tensors

PACKAGED = Path(__file__).parents[1] / "assets"
# What a checkpoint holds beside the parts: the MLLM's tokenizer and T5's.
TOKENIZERS = ("tokenizer", "t5_tokenizer")

# The parts whose large kernels may be codes.
QUANTISED = ("dit", "t5", "mllm")
# The field of a config.json that says so: by its name other libraries know that they cannot read the weights.
QUANTISATION = "quantization_config"

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one part is built, read and written."""

    # The class of its config, and what published configs call the network: `_class_name` of diffusers, `model_type` of
    # transformers.
    config: type
    names: tuple[str, ...]
    build: Callable[..., nnx.Module]
    table: Callable[[Any], Sequence[rules.Rule]]
    config_from_hf: Callable[[dict], Any]
    config_to_hf: Callable[[Any], dict]
    # What its files are called: as diffusers or as transformers call theirs.
    stem: str = "model"
    # The rules that write other published names than the library's, where there are such.
    original: Callable[[Any], Sequence[rules.Rule]] | None = None
    # The config of a network by its tensors too, where its published config.json does not say all.
    completed: Callable[[Any, Callable[[], Tensors]], Any] = lambda config, tensors: config
    # The config of weights with these names, where files may lack some that not everybody needs.
    of_tensors: Callable[[Any, Iterable[str]], Any] | None = None
    # What published files carry twice, taken out after reading and put back before writing.
    after_reading: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors
    before_writing: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors


DIFFUSERS = "diffusion_pytorch_model"
# The folder inside an imported part's that Orbax wrote.
STORED = Path("orbax", "params")
# What may stand for each part; the first one where a config does not say.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "vae": (
        Kind(
            WanVAEConfig,
            ("AutoencoderKLWan",),
            wan_vae.WanVAE,
            lambda c: wan_vae_weights.TABLE,
            wan_vae_weights.config_from_hf,
            wan_vae_weights.config_to_hf,
            stem=DIFFUSERS,
        ),
        Kind(
            CogVideoXVAEConfig,
            ("AutoencoderKLCogVideoX",),
            cogvideox_vae.CogVideoXVAE,
            lambda c: cogvideox_vae_weights.TABLE,
            cogvideox_vae_weights.config_from_hf,
            cogvideox_vae_weights.config_to_hf,
            stem=DIFFUSERS,
        ),
    ),
    "t5": (
        Kind(
            T5Config,
            ("t5", "umt5"),
            t5.T5Encoder,
            t5_weights.table,
            t5_weights.config_from_hf,
            t5_weights.config_to_hf,
            after_reading=lambda tensors, config: t5_weights.untie(tensors),
            before_writing=lambda tensors, config: t5_weights.tie(tensors),
        ),
    ),
    "mllm": (
        Kind(
            Qwen2VLConfig,
            ("qwen2_vl", "qwen2_5_vl"),
            qwen.Qwen2VL,
            qwen_weights.table,
            qwen_config.config_from_hf,
            qwen_config.config_to_hf,
            after_reading=qwen_weights.drop_head,
            of_tensors=qwen_weights.with_what_is_there,
        ),
    ),
    "clip": (
        Kind(
            CLIPVisionConfig,
            ("clip_vision_model",),
            clip.CLIPVision,
            lambda c: clip_weights.TABLE,
            clip_weights.config_from_hf,
            clip_weights.config_to_hf,
            after_reading=clip_weights.without_positions,
        ),
    ),
    "aligner": (
        Kind(
            AlignerConfig,
            ("AlignerNet",),
            aligner.AlignerNet,
            aligner_weights.table,
            aligner_weights.config_from_hf,
            aligner_weights.config_to_hf,
        ),
    ),
    "dit": (
        Kind(
            CogVideoXConfig,
            ("CogVideoXTransformer3DModel",),
            cogvideox.CogVideoXTransformer,
            lambda c: cogvideox_weights.TABLE,
            cogvideox_weights.config_from_hf,
            cogvideox_weights.config_to_hf,
            stem=DIFFUSERS,
        ),
        Kind(
            WanConfig,
            ("WanTransformer3DModel",),
            wan.WanTransformer,
            wan_weights.table,
            wan_weights.config_from_hf,
            wan_weights.config_to_hf,
            stem=DIFFUSERS,
            original=wan_weights.original_table,
            completed=wan_weights.completed,
            after_reading=wan_weights.matching,
        ),
    ),
}
# Those that no run trains from random numbers: they have no section in the config.
NEVER_DRAWN = ("clip",)


def kind_of(name: str, config: Any) -> Kind:
    """What a part with such a config is."""
    return next(kind for kind in KINDS[name] if isinstance(config, kind.config))


def part_folder(name: str, folder: str) -> Path:
    """Where a part lies: a packaged one under its name, the user's own as given."""
    if folder == "packaged":
        return PACKAGED / ("tokenizer" if name in TOKENIZERS else name)
    return _folder(folder)


def checkpoint_folder(where: str) -> Path:
    """The folder of all parts of a checkpoint: "packaged" is the demo that ships with the project, else as given."""
    return PACKAGED / "demo" if where == "packaged" else _folder(where)


def _folder(where: str) -> Path:
    """As given; what the shipped configs name is the project's own, from whatever folder a command is run."""
    return shipped.weights(where) or hub.folder(where)


def read_config(name: str, folder: Path) -> Any:
    """The config of a part's folder; InputError when there is none or it is not of this kind."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} holds no config.json, so there is no {name} to read here")
    values = plain(read_json(file))
    try:
        named = [kind for kind in KINDS[name] if published_name(values) in kind.names]
        kind = (named or KINDS[name])[0]
        config = kind.config_from_hf(values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not describe a {name} this project knows: {error}") from error
    return kind.of_tensors(config, names) if kind.of_tensors and (names := _tensor_names(folder)) else config


def _tensor_names(folder: Path) -> list[str]:
    """What the tensors of a part's folder are called; none, where they cannot be read: whoever reads them says why."""
    with contextlib.suppress(InputError):
        if (folder / STORED).is_dir():
            return ["/".join(name) for name in tree_names(folder / STORED)]
        return list(open_tensors(folder))
    return []


def completed_config(name: str, folder: Path, weights: Path | None = None) -> Any:
    """The config of a part by its config.json and, where that does not say all, by its tensors.

    Args:
        weights: the folder or file of its tensors; the part's own folder if None.

    Raises:
        InputError: as `read_config`, or a file is damaged.
    """
    config = read_config(name, folder)
    if (folder / STORED).is_dir() and weights is None:
        return config
    return kind_of(name, config).completed(config, lambda: open_tensors(weights or folder))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without what it says of kernels that are codes: the tensors themselves show that."""
    said = values.get(QUANTISATION)
    ours = isinstance(said, dict) and said.get("quant_method") == quantisation(None)["quant_method"]
    return {name: value for name, value in values.items() if name != QUANTISATION or not ours}


def quantisation(weights: Codes | None) -> dict[str, Any]:
    """What a config.json says of kernels that are codes."""
    return {"quant_method": "cinema_jax", "weights": weights}


def published_name(values: Mapping[str, Any]) -> str | None:
    """What a published config.json calls its network."""
    called = values.get("_class_name") or values.get("model_type")
    return called if isinstance(called, str) else None


def identify(folder: Path) -> str:
    """Which part a folder holds, by its config.json.

    Raises:
        InputError: none that this project knows.
    """
    called = published_name(read_json(folder / "config.json"))
    known = {published: name for name, kinds in KINDS.items() for kind in kinds for published in kind.names}
    if called not in known:
        raise InputError(f"{folder / 'config.json'} describes {called!r}; accepted: {', '.join(known)}")
    return known[called]


def structure(
    name: str, config: Any, weights: Codes | None = None
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """A part's graph definition and the shapes of its parameters, without allocating any.

    Args:
        weights: what its large kernels are, if not numbers.
    """
    graph, shapes = _structure(kind_of(name, config).build, config, weights, jax.config.jax_enable_x64)
    return graph, {f"{name}/{path}": leaf for path, leaf in shapes.items()}


# Every command asks several times, and it takes as long as to trace the network. What `float` is by default depends on
# `x64`.
@functools.lru_cache(maxsize=64)
def _structure(
    build: Callable[..., nnx.Module], config: Any, weights: Codes | None, x64: bool
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    def network() -> nnx.Module:
        made = build(config, rngs=nnx.Rngs(0))
        return quantise(made, weights) if weights else made

    module = nnx.eval_shape(network)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    assert not nnx.to_flat_state(rest), f"{build} holds state that is no parameter: {rest}"
    # Without the mesh on which it was asked.
    return graph, {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in rules.flatten(params).items()}


def initialise(name: str, config: Any, seed: int) -> dict[str, np.ndarray]:
    """Random parameters."""

    @jax.jit
    def create(key):
        return nnx.state(kind_of(name, config).build(config, rngs=nnx.Rngs(key)), nnx.Param)

    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1
    state = create(jax.random.fold_in(jax.random.key(seed), salt))
    return {f"{name}/{path}": np.asarray(leaf) for path, leaf in rules.flatten(state).items()}


def read(name: str, config: Any, folder: Path) -> dict[str, Array]:
    """A part's parameters from its folder, as they are; each is read as far and as often as somebody asks for it.

    Kernels that lie there as codes are `quantised.Dequantised`.

    Raises:
        WeightError: they are not those of a part with this config; names all that is wrong.
    """
    (_, expected), kind = structure(name, config), kind_of(name, config)
    if (folder / STORED).is_dir():
        arrays = open_stored(folder / STORED)
        wrong = [path for path in expected.keys() | arrays.keys() if _shape(expected, path) != _shape(arrays, path)]
        if wrong:
            raise WeightError(f"{folder}: {', '.join(sorted(wrong))} differ from what config.json describes")
        return arrays
    expected = {path.removeprefix(f"{name}/"): leaf for path, leaf in expected.items()}
    tensors, table = open_tensors(folder), tuple(kind.table(config))
    scales = {each + SCALE: tensors.pop(each + SCALE) for each in quantised.scaled_names(tensors)}
    if scales:
        table += quantised.scale_rules(table)
        expected |= {path + SCALE: quantised.scales_like(expected[path]) for path in large_kernels(expected)}
    arrays = rules.import_weights({**kind.after_reading(tensors, config), **scales}, table, expected)
    return {f"{name}/{path}": array for path, array in quantised.joined(arrays).items()}


def _shape(arrays: Mapping[str, Any], path: str) -> tuple[int, ...] | None:
    return tuple(arrays[path].shape) if path in arrays else None


def published(name: str, config: Any, params: Mapping[str, Array]) -> dict[str, Published]:
    """A part's tensors under their published names, none of them read yet."""
    own = {path.removeprefix(f"{name}/"): x for path, x in params.items() if path.startswith(f"{name}/")}
    kind, table = kind_of(name, config), tuple(kind_of(name, config).table(config))
    return kind.before_writing(rules.publish(own, table + quantised.scale_rules(table)), config)


def with_codes(name: str, params: Mapping[str, Array], weights: Codes | None) -> dict[str, Array]:
    """A part's parameters with codes and scales in the place of its large kernels, none of them read yet."""
    large = large_kernels(params) if weights and name in QUANTISED else ()
    return quantised.quantised(params, dict.fromkeys(large, weights))


def write(name: str, config: Any, params: Mapping[str, Array], folder: Path, dtype: Any = np.float32) -> None:
    """Write a part's folder: `config.json` and one file of its tensors under the published names.

    Process 0 writes. All must call this, and hand it one tensor after the other of what lies on the devices of all.
    """
    kind = kind_of(name, config)
    tensors = {key: tensor.astype(dtype) for key, tensor in published(name, config, params).items()}
    if not distributed.is_first():
        return read_along(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    # Each whole or not at all, and the config last: a folder with a config is complete.
    write_tensors(folder / f"{kind.stem}.safetensors", tensors)
    write_json(folder / "config.json", kind.config_to_hf(config))
