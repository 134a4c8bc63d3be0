"""Configuration and inputs of Qwen2-VL and Qwen2.5-VL. No jax here: data worker processes import this file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from cinema_jax.errors import InputError
from cinema_jax.inputs.typed import network, section


def _check(holds: bool, field: str, value: object, accepted: str) -> None:
    if not holds:
        raise InputError(f"{field} is {value!r}, accepted is {accepted}")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """What the vision towers have in common; the defaults are those of every released Qwen2-VL and Qwen2.5-VL."""

    depth: int = 32  # transformer blocks
    num_heads: int = 16  # attention heads; the width / num_heads must be a multiple of 4 (rows and columns, in pairs)
    patch_size: int = 14  # pixels along one side of a patch
    temporal_patch_size: int = 2  # frames in a patch; an image is repeated that often
    spatial_merge_size: int = 2  # patches along one side of a block that becomes one language token
    rope_theta: float = 10000.0  # base of the 2D rotary embedding
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # RGB, pixels in [0, 1]
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)  # RGB, pixels in [0, 1]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int:
                _check(getattr(self, field.name) >= 1, f"vision.{field.name}", getattr(self, field.name), "at least 1")

    @property
    def patch_dim(self) -> int:
        """Numbers in one flat patch: colours x frames x rows x columns."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one language token."""
        return self.spatial_merge_size**2

    @property
    def pixel_unit(self) -> int:
        """Side lengths of resized images are multiples of this many pixels."""
        return self.patch_size * self.spatial_merge_size


@dataclasses.dataclass(frozen=True)
class Qwen2VLVisionConfig(VisionConfig):
    """The vision tower; the defaults are those of every released Qwen2-VL."""

    embed_dim: int = 1280  # width of the blocks
    mlp_ratio: int = 4  # width of the feed-forward layer / embed_dim

    def __post_init__(self):
        super().__post_init__()
        _check(self.embed_dim % (4 * self.num_heads) == 0, "vision.embed_dim", self.embed_dim, "a multiple of 4 heads")


@dataclasses.dataclass(frozen=True)
class Qwen25VLVisionConfig(VisionConfig):
    """The vision tower of Qwen2.5-VL; the defaults are those of the released 7B."""

    hidden_size: int = 1280  # width of the blocks
    intermediate_size: int = 3420  # width of the SwiGLU layers
    out_hidden_size: int = 3584  # width of the language model
    window_size: int = 112  # pixels along one side of an attention window; rounded down to whole merge blocks
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)  # blocks that attend to the whole image, counted from 0
    tokens_per_second: int = 2  # time positions in a second of video; Qwen2-VL has one for each temporal patch

    def __post_init__(self):
        super().__post_init__()
        width, full = self.hidden_size, self.fullatt_block_indexes
        _check(width % (4 * self.num_heads) == 0, "vision.hidden_size", width, "a multiple of 4 heads")
        block = f"at least one merge block, {self.pixel_unit} pixels"
        _check(self.window_size >= self.pixel_unit, "vision.window_size", self.window_size, block)
        known = all(0 <= index < self.depth for index in full)
        _check(known, "vision.fullatt_block_indexes", full, f"numbers of blocks, 0 to {self.depth - 1}")

    @property
    def window_patches(self) -> int:
        """Patches along one side of an attention window."""
        return self.window_size // self.pixel_unit * self.spatial_merge_size


@dataclasses.dataclass(frozen=True)
class Qwen2VLConfig:
    """The whole model; the defaults are those of Qwen2-VL-2B."""

    # The vision tower: its type says whether this is a Qwen2-VL or a Qwen2.5-VL, whose language models are alike.
    vision: Qwen2VLVisionConfig | Qwen25VLVisionConfig = Qwen2VLVisionConfig()
    vocab_size: int = 151936  # rows of the token embedding
    hidden_size: int = 1536  # width of the language model
    intermediate_size: int = 8960  # width of its SwiGLU layers
    num_hidden_layers: int = 28  # decoder layers
    num_attention_heads: int = 12  # query heads
    num_key_value_heads: int = 2  # key and value heads, a divisor of num_attention_heads
    rms_norm_eps: float = 1e-6  # added to the mean square in every RMSNorm
    rope_theta: float = 1000000.0  # base of the rotary embedding
    mrope_section: tuple[int, int, int] = (16, 24, 24)  # rotary pairs that turn with time, row, column
    tie_word_embeddings: bool = True  # whether the output layer is the token embedding (2B yes, 7B no)
    output_layer: bool = True  # where they are not tied, whether there is one: who only reads can do without
    image_token_id: int = 151655  # the token whose embeddings are replaced by the vision tower's

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int and field.name != "image_token_id":
                _check(getattr(self, field.name) >= 1, field.name, getattr(self, field.name), "at least 1")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        _check(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, {heads}")
        _check(self.hidden_size % (2 * heads) == 0, "hidden_size", self.hidden_size, "a multiple of 2 heads")
        pairs = self.head_dim // 2
        _check(
            len(self.mrope_section) == 3 and sum(self.mrope_section) == pairs,
            "mrope_section",
            self.mrope_section,
            f"three numbers whose sum is half the head size, {pairs}",
        )
        _check(
            0 <= self.image_token_id < self.vocab_size,
            "image_token_id",
            self.image_token_id,
            f"a token below vocab_size, {self.vocab_size}",
        )
        if isinstance(self.vision, Qwen25VLVisionConfig):
            out = self.vision.out_hidden_size
            _check(out == self.hidden_size, "vision.out_hidden_size", out, f"hidden_size, {self.hidden_size}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def speaks(self) -> bool:
        """Whether it has what names the next token."""
        return self.tie_word_embeddings or self.output_layer


class MLLMInputs(NamedTuple):
    """A batch as the model reads it: numpy on the host, jax on the device, and a pytree either way.

    Padding is a suffix everywhere. The i-th image token of a sample's sequence receives its i-th merged patch block.
    """

    tokens: Any  # Int[B L] token ids, right padded
    lengths: Any  # Int[B] tokens that are no padding
    positions: Any  # Int[B 3 L] M-RoPE: time, row, column
    patches: Any  # Float[B P patch_dim] normalised pixels, in merge blocks
    patch_segments: Any  # Int[B P] 0 = padding, 1..K = number of the image
    patch_positions: Any  # Int[B P 2] row and column of the patch in its image

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> "MLLMInputs":
        """From a dictionary of arrays that may hold more (`loss_mask`, ...)."""
        return cls(*(batch[name] for name in cls._fields))


# Settings that change the mathematics and of which one value only is implemented: transformers' name -> that value.
_TEXT_FIXED = {"hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0}
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
# transformers keeps these in preprocessor_config.json; where they are not Qwen's own we write them beside the others.
_PIXEL_FIELDS = ("image_mean", "image_std")
# Those that have names of their own in config.json; the tower's other fields are called as there.
_OWN_FIELDS = ("rope_theta", *_PIXEL_FIELDS)


class _Layout(NamedTuple):
    """How a `model_type` stands in `config.json`."""

    architecture: str
    vision: type[VisionConfig]
    vision_fixed: Mapping[str, object]

    @property
    def vision_fields(self) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(self.vision) if field.name not in _OWN_FIELDS)


_LAYOUTS = {
    "qwen2_vl": _Layout(
        "Qwen2VLForConditionalGeneration",
        Qwen2VLVisionConfig,
        {"hidden_act": "quick_gelu", "in_channels": 3, "in_chans": 3},
    ),
    "qwen2_5_vl": _Layout(
        "Qwen2_5_VLForConditionalGeneration",
        Qwen25VLVisionConfig,
        {"hidden_act": "silu", "in_channels": 3, "in_chans": 3},
    ),
}


def _require_fixed(hf: Mapping[str, Any], fixed: Mapping[str, object], where: str) -> None:
    for name, value in fixed.items():
        _check(hf.get(name, value) == value, where + name, hf.get(name), repr(value))


def _vision_from_hf(vision: Mapping[str, Any], layout: _Layout, width: int) -> VisionConfig:
    """Read a `vision_config`; `width` is that of the language model."""
    _require_fixed(vision, layout.vision_fixed, "vision_config.")
    if layout.vision is Qwen2VLVisionConfig:  # `hidden_size` is what comes out
        out = vision.get("hidden_size", width)
        _check(out == width, "vision_config.hidden_size", out, f"hidden_size, {width}")
    else:  # ... and here the width of the blocks, whose default in transformers no released model has
        _check("hidden_size" in vision, "vision_config", "without hidden_size", "one with it")
    rope = section(vision, "rope_parameters")
    kind = rope.get("rope_type", "axial")
    _check(kind == "axial", "vision_config rope type", kind, "'axial'")
    values = {name: vision[name] for name in (*layout.vision_fields, *_PIXEL_FIELDS) if name in vision}
    return network(values | {"rope_theta": rope.get("rope_theta", 10000.0)}, layout.vision)


def config_from_hf(hf: Mapping[str, Any]) -> Qwen2VLConfig:
    """Read a `config.json`: the released flat layout (transformers 4) or the nested one (transformers 5).

    Raises:
        InputError: for a setting that this implementation does not have, by name.
    """
    kind = hf.get("model_type")
    _check(kind in _LAYOUTS, "model_type", kind, " or ".join(map(repr, _LAYOUTS)))
    text = section(hf, "text_config") or hf
    missing = [name for name in _TEXT_FIELDS if name not in text]
    _check(not missing, "config.json", f"without {missing}", "one with all of them")
    _require_fixed(text, _TEXT_FIXED, "")
    rope = section(text, "rope_parameters") or section(text, "rope_scaling")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _check(rope_type in ("default", "mrope"), "rope type", rope_type, "'default' or 'mrope'")
    vision = section(hf, "vision_config")
    _check(bool(vision), "config.json", "without vision_config", "one with it")
    fields = dict(
        vision=_vision_from_hf(vision, _LAYOUTS[kind], text["hidden_size"]),
        **{name: text[name] for name in _TEXT_FIELDS},
        rope_theta=rope.get("rope_theta", text.get("rope_theta", 1000000.0)),
        mrope_section=rope.get("mrope_section", (16, 24, 24)),
        # transformers wrote the switch beside the text settings before version 5
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)),
        image_token_id=hf.get("image_token_id", 151655),
    )
    return network(fields, Qwen2VLConfig)


def config_to_hf(config: Qwen2VLConfig) -> dict[str, Any]:
    """Write a `config.json` in the released flat layout, which transformers 4 and 5 read."""
    kind, layout = next((kind, x) for kind, x in _LAYOUTS.items() if x.vision is type(config.vision))
    vision = {name: getattr(config.vision, name) for name in layout.vision_fields}
    vision = {name: list(x) if isinstance(x, tuple) else x for name, x in vision.items()}
    vision |= {**layout.vision_fixed, "model_type": kind, "spatial_patch_size": config.vision.patch_size}
    if layout.vision is Qwen2VLVisionConfig:
        vision["hidden_size"] = config.hidden_size
    pixels = {name: getattr(config.vision, name) for name in _PIXEL_FIELDS}
    vision |= {name: list(x) for name, x in pixels.items() if x != getattr(layout.vision, name)}
    if config.vision.rope_theta != 10000.0:  # transformers 4 knows no other
        vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": config.vision.rope_theta}
    return {
        "architectures": [layout.architecture],
        "model_type": kind,
        **{name: getattr(config, name) for name in _TEXT_FIELDS},
        **_TEXT_FIXED,
        "rope_theta": config.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(config.mrope_section)},
        "tie_word_embeddings": config.tie_word_embeddings,
        "image_token_id": config.image_token_id,
        "vision_config": vision,
    }
