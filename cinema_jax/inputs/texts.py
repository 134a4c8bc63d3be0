"""What a user's text may hold that no network reads as it is meant."""

from collections.abc import Iterable
from typing import Any

from cinema_jax.errors import InputError

# Of words that are listed in a message.
MAX_LISTED = 8


def lone_surrogate(text: str) -> int | None:
    """Where a text has half of a character, as bytes that are no UTF-8 or a cut escape in JSON leave it; None: nowhere.

    No tokenizer reads it, and no file takes it.
    """
    return next((place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)


def check_whole(text: str, what: str) -> None:
    """Raises `InputError` where a text has half of a character; `what` is what it is called."""
    if (place := lone_surrogate(text)) is not None:
        around = ascii(text[max(0, place - 20) : place + 20])
        raise InputError(f"{what} holds half of a character (a lone surrogate) at position {place}: {around}")


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """The pieces of a text that a tokenizer of transformers reads as "unknown", each once, in their order.

    Two texts that differ in these alone are one text to the network.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or not text:
        return []
    if not tokenizer.is_fast:
        words = [word for word in text.split() if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
        return list(dict.fromkeys(words))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return list(dict.fromkeys(text[start:end].strip() for number, (start, end) in places if number == unknown))


def listed(words: Iterable[str]) -> str:
    """Words for a message, the first of them."""
    words = list(words)
    more = f" and {len(words) - MAX_LISTED} more" if len(words) > MAX_LISTED else ""
    return ", ".join(map(repr, words[:MAX_LISTED])) + more
