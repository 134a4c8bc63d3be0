"""CLIP-T, CLIP-I and DINO-I: figures of the field that need large networks, of which the user has the weights.

They run in PyTorch, which this project does not require, from local folders in the layout of transformers; only
safetensors are opened. A CLIP or DINO can judge photographs; on critters their figures mean little.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cinema_jax.data.example import Reference
from cinema_jax.data.images import on_white
from cinema_jax.data.sheets import spread
from cinema_jax.errors import InputError, fault_of
from cinema_jax.evaluation.measures import Sums

# Frames that are shown to them, from first to last.
FRAMES = 8


@runtime_checkable
class Metric(Protocol):
    """A measure of one video beside the judge's own."""

    def __call__(
        self, prompt: str, references: Sequence[Reference], video: UInt8[np.ndarray, "frames height width 3"]
    ) -> Sums: ...


class Clip:
    """`clip_t`: cosine of prompt and frames; `clip_i`: of each reference, cut out on white, and frames.

    Raises:
        InputError: PyTorch is not installed, or the folder holds no whole CLIP in safetensors.
    """

    def __init__(self, folder: Path):
        self._torch, self._model, self._processor = _load(folder, "CLIPModel")
        _try(self, folder)

    def __call__(
        self, prompt: str, references: Sequence[Reference], video: UInt8[np.ndarray, "frames height width 3"]
    ) -> Sums:
        frames = self._images(spread(video, FRAMES))
        pictures = self._images([on_white(r.image, r.mask) for r in references])
        tokens = self._processor(text=[prompt], return_tensors="pt", truncation=True, padding=True)
        with self._torch.no_grad():
            text = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        return {"clip_t": _cosines(_unit(text), frames), "clip_i": _cosines(pictures, frames)}

    def _images(self, images: Sequence[np.ndarray]) -> Float[np.ndarray, "N E"]:
        pixels = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        with self._torch.no_grad():
            return _unit(self._model.visual_projection(self._model.vision_model(**pixels).pooler_output))


class Dino:
    """`dino_i`: cosine of each reference, cut out on white, and frames.

    Raises:
        InputError: PyTorch is not installed, or the folder holds no whole DINO (v1, v2) in safetensors.
    """

    def __init__(self, folder: Path):
        self._torch, self._model, self._processor = _load(folder, "AutoModel")
        _try(self, folder)

    def __call__(
        self, prompt: str, references: Sequence[Reference], video: UInt8[np.ndarray, "frames height width 3"]
    ) -> Sums:
        pictures = self._images([on_white(r.image, r.mask) for r in references])
        return {"dino_i": _cosines(pictures, self._images(spread(video, FRAMES)))}

    def _images(self, images: Sequence[np.ndarray]) -> Float[np.ndarray, "N E"]:
        pixels = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        with self._torch.no_grad():
            return _unit(self._model(**pixels).last_hidden_state[:, 0])


def _load(folder: Path, kind: str):
    try:
        import torch
    except ImportError:
        raise InputError("CLIP and DINO run in PyTorch, which is not installed: pip install torch") from None
    import transformers

    # What is missing is said below, in one sentence.
    transformers.logging.set_verbosity_error()
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no *.safetensors; nothing else is opened")
    processor = transformers.AutoProcessor if kind == "CLIPModel" else transformers.AutoImageProcessor
    options = {"local_files_only": True, "trust_remote_code": False}
    with fault_of(f"{folder} cannot be read as transformers' {kind}"):
        found = getattr(transformers, kind).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
        loaded = torch, found[0].eval(), processor.from_pretrained(folder, **options)
    # What its files lack transformers draws at random. DINO was published without the pooler, which is not used here.
    lacking = {*found[1]["missing_keys"], *(name for name, *_ in found[1]["mismatched_keys"])}
    if missing := sorted(name for name in lacking if not name.startswith("pooler.")):
        raise InputError(f"{folder} is no whole {kind}: {missing[0]} and {len(missing) - 1} more have no weights")
    return loaded


def _try(metric: Metric, folder: Path) -> None:
    """Measure a picture without content: what is wrong with a config often shows when it is used, after all videos."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None], (64, 64, 3)) * np.array([1, 2, 3], np.uint8)
    with fault_of(f"{folder} cannot be used as it is described there"):
        found = metric("a cat", [Reference(ramp, None, "")], ramp[None])
    if not all(np.isfinite(total) for total, _ in found.values()):
        raise InputError(f"{folder} holds weights that give no finite numbers")


def _unit(features) -> Float[np.ndarray, "N E"]:
    features = features.numpy()
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def _cosines(these: Float[np.ndarray, "K E"], frames: Float[np.ndarray, "N E"]) -> tuple[float, int]:
    """The sum over `these` of their mean cosine with all frames."""
    return float((these @ frames.T).mean(axis=1).sum()), len(these)
