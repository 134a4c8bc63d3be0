"""CLIP and DINO of tiny random weights, through transformers' own saving."""

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from cinema_jax.data.example import Reference
from cinema_jax.errors import InputError
from cinema_jax.evaluation.large import Clip, Dino

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 16, "patch_size": 8}
PICTURES = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": 4, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "cat": 1, "<s>": 2, "</s>": 3}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=8
    )
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(**PICTURES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION)).save_pretrained(folder)
    transformers.BitImageProcessor(**PICTURES).save_pretrained(folder)
    return folder


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
