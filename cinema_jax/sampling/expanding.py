"""Prompt expansion: the multimodal LLM sees the pictures of a request and writes the whole prompt.

How it is asked stands in a file of text, whose {prompt} is what the user has written; the pictures come before it. The
two that ship are `assets/expand_prompt.txt` and, for small models of the demo's template, `expand_prompt_demo.txt`.
"""

import dataclasses
import logging
import os
from pathlib import Path

from cinema_jax.data.images import on_white
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.errors import InputError
from cinema_jax.experiment.parts import PACKAGED
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.files import read_text
from cinema_jax.models.qwen_vl.chat import ask
from cinema_jax.sampling.mllm import MLLM, speaker
from cinema_jax.sampling.requests import Request, check_requests

logger = logging.getLogger(__name__)

PLACE = "{prompt}"
# Bytes of an instruction; tokens of a prompt, where the model has room for more.
_MOST, _MOST_TOKENS = 1 << 16, 512


def instruction_of(run: Run, file: str | os.PathLike[str] | None = None) -> str:
    """How a checkpoint's multimodal LLM is asked, once it is known that it can answer; no weights are needed.

    Args:
        file: in the place of the one that ships with the project.

    Raises:
        InputError: there is no multimodal LLM, it cannot speak, or the file is no such text.
    """
    speaker(run)
    if file is None:
        small = run.config.condition.template == "demo"
        file = PACKAGED / ("expand_prompt_demo.txt" if small else "expand_prompt.txt")
    text = read_text(Path(file), _MOST).strip()
    if PLACE not in text:
        raise InputError(f"{file} holds no {PLACE}; that says where the prompt belongs in the instruction")
    return text


def expanded(mllm: MLLM, preprocessor: Preprocessor, request: Request, instruction: str) -> Request:
    """A request with the prompt that the multimodal LLM makes of it; `asked` is what it was.

    Args:
        preprocessor: the checkpoint's; the pictures are shown to it as to its MLLM otherwise.
        instruction: of `instruction_of`.

    Raises:
        InputError: nothing was written, or what was written is too long for the checkpoint.
    """
    seen = [preprocessor.cropped(reference) for reference in request.references]
    pictures = mllm.processor.template.labelled([on_white(one.image, one.mask) for one in seen])
    chat = ask(*pictures, instruction.replace(PLACE, request.prompt))
    [answer] = mllm([chat], max_new_tokens=_room(preprocessor, len(seen)))
    text = " ".join(answer.text.split())
    if not text:
        raise InputError(f"the multimodal LLM wrote nothing for the prompt {request.prompt[:60]!r}")
    if not answer.finished:
        logger.warning("the expanded prompt was cut, as there is no room for more: %s", text)
    request = dataclasses.replace(request, prompt=text, asked=request.prompt)
    check_requests(preprocessor, [request])
    return request


def _room(preprocessor: Preprocessor, pictures: int) -> int:
    """How many tokens a prompt may have beside its pictures."""
    if preprocessor.config.condition.conditioner != "mllm" or preprocessor.processor is None:
        return _MOST_TOKENS
    [others] = preprocessor.processor.most_tokens([""], [pictures])
    return max(1, min(_MOST_TOKENS, preprocessor.processor.max_length - others))
