"""A tokenizer of our own for small models: a list of words, and characters for all other words."""

import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs.files import read_json
from cinema_jax.models.qwen_vl.processing import DEMO_TEMPLATE, Template

SPECIAL = ("<pad>", "<eos>", "<unk>")
# Of the released models that are read here, as transformers calls theirs; the last three are for any tokenizer.json.
CLASSES = (
    *("T5Tokenizer", "T5TokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"),
    *("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
)
_TRIAL = "A blue bird, 2 fish\u00e9s."
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
# Words for masked spans, of a T5's tokenizer.
MOST_EXTRA_IDS = 10_000


def build_word_tokenizer(words: Iterable[str], template: Template = DEMO_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are these words and those of the template, lower-cased.

    Other words are split into known words and characters (longest first), accents are dropped, and only characters
    outside ASCII become `<unk>`. Punctuation marks and digits are tokens of their own. Ids are the same for the same
    set of words: 0 is `<pad>`, 1 `<eos>`, 2 `<unk>`, 3 the template's image token.
    """
    normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(True)]
    )
    special = (*SPECIAL, template.image_token)
    template_text = " ".join([template.opening, template.image.format(number=1), template.closing])
    text = " ".join([*words, template_text.replace(template.image_token, " ")])
    known = {piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    pieces = [*special, *_CHARACTERS, *("##" + c for c in _CHARACTERS)]
    pieces += sorted(known - set(pieces))
    model = models.WordPiece(
        {piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>", continuing_subword_prefix="##"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=[template.image_token],
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in a folder, ours or a released one; nothing is downloaded."""
    if not folder.is_dir():
        raise InputError(f"tokenizer is {str(folder)!r}, accepted is a folder with a saved tokenizer")
    settings = folder / "tokenizer_config.json"
    values = read_json(settings) if settings.exists() else {}
    called, extra = values.get("tokenizer_class"), values.get("extra_ids")
    # A name chooses code, though of transformers alone; what it has for other models is tried less with damaged files.
    if called is not None and called not in CLASSES:
        raise InputError(f"{settings}: tokenizer_class is {called!r}; accepted: {', '.join(CLASSES)}")
    # A T5 has 100 and a UMT5 300 of them; transformers makes as many words as it says, until no memory is left.
    if type(extra) is int and not 0 <= extra <= MOST_EXTRA_IDS:
        raise InputError(f"{settings}: extra_ids is {extra}; it must be from 0 to {MOST_EXTRA_IDS}")
    with fault_of(f"{folder} cannot be read as a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # What is damaged may show only when it is used.
        numbers = tokenizer(_TRIAL)["input_ids"]
        wrong = [one for one in numbers if type(one) is not int or not 0 <= one < len(tokenizer)]
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(tokenizer, name)
            wrong += [] if value is None or (type(value) is int and value >= 0) else [value]
    if wrong:
        raise InputError(f"{folder} cannot be read as a tokenizer: it makes the token {wrong[0]!r}")
    return tokenizer
