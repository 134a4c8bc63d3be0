"""Examples without content, for a plan where no data is: what shape a batch has follows from the config alone.

They are made as in training, by the same code, of a clip without a picture and texts without a word.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from cinema_jax.cinema import Cinema
from cinema_jax.data.critters.grammar import vocabulary
from cinema_jax.data.example import Conditions
from cinema_jax.data.pipeline import Examples
from cinema_jax.data.preprocessor import Preprocessor, mllm_room
from cinema_jax.models.qwen_vl.processing import DEMO_TEMPLATE, Processor
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from cinema_jax.training.stages import STAGES


class Blank:
    """A source of one example: every source's kind in one, as it is asked for the shapes of what they all have."""

    def __init__(self, frames: int, height: int, width: int):
        self._frames, self._height, self._width = frames, height, width

    def __len__(self) -> int:
        return 1

    def id(self, index: int) -> str:
        """Its name."""
        return "blank"

    def video(self, index: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """Black frames."""
        return np.zeros((self._frames, self._height, self._width, 3), np.uint8)

    def frame(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        """One of them."""
        return np.zeros((self._height, self._width, 3), np.uint8)

    def caption(self, index: int) -> str:
        """No word."""
        return ""

    def conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        """No word and no picture."""
        return Conditions("", "", (), plot="")

    def boxes(self, index: int) -> Float32[np.ndarray, "frames 1 4"]:
        """One subject that is nowhere."""
        return np.zeros((self._frames, 1, 4), np.float32)

    def describe_task(self, index: int, rng: np.random.Generator) -> tuple[Sequence[np.ndarray], str, str]:
        """Nothing is shown, asked and answered."""
        return (), "", ""

    portrait_task = describe_task


def blank_examples(cinema: Cinema, stage: str, held_out: bool = False) -> Examples:
    """The one example of a stage, for training or for the held-out evaluation.

    Args:
        cinema: the networks that the stage needs; no weights.
    """
    data = cinema.config.data
    source = Blank(data.frames, data.height, data.width)
    latents = None
    if STAGES[stage].on_latents(held_out):
        clip = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), np.uint8)
        latents = np.zeros(jax.eval_shape(cinema.encode_video, cinema.shapes, clip).shape, np.float32)
    return Examples(source, blank_preprocessor(cinema), range(1), latents, augment=not held_out, captions=("",))


def blank_preprocessor(cinema: Cinema) -> Preprocessor:
    """What turns prompts and references into arrays, of networks without weights and words."""
    return Preprocessor(cinema.config, _processor(cinema), build_word_tokenizer(vocabulary()))


def _processor(cinema: Cinema) -> Processor | None:
    """With words that need no file, in the place of those that the MLLM was trained with."""
    if "mllm" not in cinema.part_configs:
        return None
    condition, vision = cinema.config.condition, cinema.part_configs["mllm"].vision
    tokens, patches = mllm_room(cinema.config, vision)
    return Processor(
        build_word_tokenizer(vocabulary()),
        vision,
        DEMO_TEMPLATE,
        max_length=tokens,
        max_patches=patches,
        max_pixels=condition.mllm_max_pixels,
        min_pixels=condition.mllm_min_pixels,
    )
