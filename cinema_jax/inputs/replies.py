"""Values in what a language model writes: JSON, often with words or a fence around it."""

import re
from typing import Any

from cinema_jax.errors import InputError
from cinema_jax.inputs.files import parse_json
from cinema_jax.inputs.typed import checked

_FENCED = re.compile(r"```(?:\w+)?\s*(.*?)```", re.DOTALL)
_NAME = "the answer"


def value_of(text: str, kind: Any) -> Any:
    """The value of type `kind` that a text holds as JSON.

    Args:
        text: JSON alone, in a fence of three backticks, or between other words: from the first bracket to the last.
        kind: what `typed.checked` accepts: a dataclass, whose fields are the keys, a list of such, and so on.

    Raises:
        InputError: there is no JSON, or it is not of this type: one sentence, which the model can be told.
    """
    fenced = _FENCED.search(text)
    body = fenced.group(1) if fenced else text
    begin = min((at for at in map(body.find, "{[") if at >= 0), default=-1)
    end = max(map(body.rfind, "}]"))
    if begin < 0 or end < begin:
        raise InputError(f"{_NAME} holds no JSON")
    return checked(parse_json(body[begin : end + 1], _NAME), kind, _NAME)
