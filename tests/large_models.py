"""CLIP and DINO of tiny random weights, as transformers saves them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 16, "patch_size": 8}
PICTURES = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}


def save_clip(folder: Path) -> Path:
    """A CLIP that knows one word, "cat"."""
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


def save_dino(folder: Path) -> Path:
    """A DINO of version 2."""
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION)).save_pretrained(folder)
    transformers.BitImageProcessor(**PICTURES).save_pretrained(folder)
    return folder
