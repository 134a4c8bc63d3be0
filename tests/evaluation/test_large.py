"""CLIP and DINO of tiny random weights, through transformers' own saving."""

import numpy as np
import pytest
import torch
import transformers
from large_models import save_clip, save_dino
from safetensors.torch import load_file, save_file

from cinema_jax.data.example import Reference
from cinema_jax.errors import InputError
from cinema_jax.evaluation.large import Clip, Dino


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)


def test_a_video_of_the_reference_itself_is_wholly_like_it(clip, dino, picture):
    video, references = np.stack([picture] * 3), [Reference(picture, None, "a")]
    for metric, name in ((Clip(clip), "clip_i"), (Dino(dino), "dino_i")):
        total, count = metric("cat", references, video)[name]
        np.testing.assert_allclose([total, count], [1, 1], rtol=1e-5)
        other, _ = metric("cat", references, 255 - video)[name]
        assert other < total - 1e-3


def test_the_text_s_cosine_is_transformers_own(clip, picture):
    total, count = Clip(clip)("cat", [Reference(picture, None, "a")], picture[None])["clip_t"]
    model = transformers.CLIPModel.from_pretrained(clip)
    inputs = transformers.AutoProcessor.from_pretrained(clip)(text=["cat"], images=[picture], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image / model.logit_scale.exp()
    np.testing.assert_allclose([total, count], [expected.item(), 1], rtol=1e-5)


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no \*\.safetensors; nothing else is opened"):
        Clip(tmp_path)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path):
    for kind, save in ((Clip, save_clip), (Dino, save_dino)):
        file = save(tmp_path) / "model.safetensors"
        tensors = load_file(file)
        name = max(tensors)
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, {"format": "pt"})
        with pytest.raises(InputError, match=rf"is no whole \w+: {name} and 0 more have no weights"):
            kind(tmp_path)
        file.unlink()
