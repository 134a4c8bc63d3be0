"""What networks read of a prompt and its references, in training and in sampling. Runs in data workers: numpy only."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8
from transformers import PreTrainedTokenizerBase

from cinema_jax.config import Config
from cinema_jax.data.example import Reference
from cinema_jax.data.images import (
    MOST_ENLARGED,
    WHITE,
    cropped,
    fitted,
    letterbox,
    on_grey,
    scaled,
    scaled_size,
    shrunk,
)
from cinema_jax.data.texts import clean
from cinema_jax.errors import InputError
from cinema_jax.inputs.texts import check_whole, unknown_words
from cinema_jax.models.qwen_vl.config import VisionConfig
from cinema_jax.models.qwen_vl.processing import Processor

Arrays = dict[str, np.ndarray]


def mllm_room(config: Config, vision: VisionConfig) -> tuple[int, int]:
    """Tokens and patches of the MLLM's input: in a bucket of few references there is no room for others.

    A picture is as large as beside the most references that any bucket has, and as much room is left for the text.
    """
    data, condition = config.data, config.condition
    if not data.buckets:
        return condition.mllm_tokens, condition.mllm_patches
    one = condition.mllm_max_pixels // vision.pixel_unit**2 * vision.merge_unit
    most = min(condition.mllm_patches, max(references for *_, references in data.buckets) * one)
    patches = min(condition.mllm_patches, data.max_references * one)
    return condition.mllm_tokens - max(0, most - patches) // vision.merge_unit, patches


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Turns texts and pictures into what the networks read. The same object serves training and sampling."""

    config: Config
    # For the MLLM; None where T5 alone reads the prompt.
    processor: Processor | None
    # None where only the MLLM's lengths are asked for.
    t5_tokenizer: PreTrainedTokenizerBase | None
    # Whether texts that are too long are cut; else `InputError`.
    truncate: bool = False

    def whole(self) -> "Preprocessor":
        """The same, which cuts no text: whoever asks for a video is told that the prompt is too long."""
        processor = None if self.processor is None else dataclasses.replace(self.processor, truncate=False)
        return dataclasses.replace(self, processor=processor, truncate=False)

    def text(self, text: str) -> tuple[Int32[np.ndarray, "T"], int]:
        """T5 token ids of `text`, padded to the text block, and how many of them are real."""
        length = self.config.condition.text_tokens
        check_whole(text, "the text")
        tokens = list(self.t5_tokenizer(self._cleaned(text))["input_ids"])
        if not tokens or tokens[-1] != self.t5_tokenizer.eos_token_id:
            tokens.append(self.t5_tokenizer.eos_token_id)
        if self.truncate:
            # Its end is marked all the same, as transformers does.
            tokens = [*tokens[:-1][: length - 1], tokens[-1]]
        if len(tokens) > length:
            raise InputError(f"the text {text[:60]!r}... has {len(tokens)} tokens; at most {length} are accepted")
        padding = [self.t5_tokenizer.pad_token_id] * (length - len(tokens))
        return np.asarray(tokens + padding, np.int32), len(tokens)

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens `text` makes of each, if it has room."""
        end = self.t5_tokenizer.eos_token_id
        cleaned = list(map(self._cleaned, texts))
        return [len(ids) + (ids[-1:] != [end]) for ids in self.t5_tokenizer(cleaned)["input_ids"]]

    def _cleaned(self, text: str) -> str:
        return clean(text) if self.config.condition.clean_text else text

    def answering(self, prompt: str, images: Sequence[np.ndarray], answer: str, alone: bool = False) -> Arrays:
        """What the MLLM reads, continued by an answer that it should learn; with `alone`, room for one image only.

        Numbers of images that the prompt gives ("the bird 2 chases the snail") are to be learned too.
        """
        assert self.processor is not None, "there is no MLLM to answer"
        condition, patches = self.config.condition, self.processor.max_patches
        length = condition.mllm_tokens + condition.answer_tokens
        if alone:
            patches //= self.config.data.max_references
            length //= self.config.data.max_references
        processor = dataclasses.replace(self.processor, max_length=length, max_patches=patches, truncate=False)
        arrays = processor(prompt, images, answer)
        numbers = self.processor.tokenizer.convert_tokens_to_ids([str(number + 1) for number in range(len(images))])
        # Before it stand the numbers that the template gives.
        last = np.flatnonzero(arrays["tokens"] == self.processor.image_token_id).max(initial=-1)
        arrays["loss_mask"] |= np.isin(arrays["tokens"], numbers) & (np.arange(len(arrays["tokens"])) > last)
        return arrays

    def conditions(self, prompt: str, references: Sequence[Reference], shown: bool = True) -> Arrays:
        """One sample's prompt and references, as they were read, for MLLM, VAE and (ablation) T5."""
        return self.laid_out(prompt, [self.cropped(reference) for reference in references], shown)

    def at(self, height: int, width: int, frames: int | None = None) -> "Preprocessor":
        """The same for videos of another size, and perhaps of another length."""
        frames = self.config.data.frames if frames is None else frames
        data = dataclasses.replace(self.config.data, height=height, width=width, frames=frames)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def check(self, prompt: str, references: Sequence[Reference]) -> None:
        """Raises as `conditions` would, without any pixels: a text that is too long, or too many references."""
        self._check_count(references)
        if self.processor is not None:
            sizes = [self.cropped(reference).image.shape[:2] for reference in references]
            scales = self.config.condition.mllm_scales
            self.processor.check(prompt, [scaled_size(*size, *scales) for size in sizes])
        if self.config.condition.conditioner != "mllm":
            self.text(prompt)

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that its reader's tokenizer does not know."""
        reads = self.config.condition.conditioner != "t5" and self.processor is not None
        return unknown_words(self.processor.tokenizer, prompt) if reads else self.unknown_to_t5(prompt)

    def unknown_to_t5(self, text: str) -> list[str]:
        """The words of a text that T5's tokenizer does not know."""
        return unknown_words(self.t5_tokenizer, self._cleaned(text))

    def cropped(self, reference: Reference) -> Reference:
        """What all readers are shown of a picture; before augmentation, so that training and sampling agree."""
        if not self.config.data.crop_references:
            return reference
        image, mask = cropped(reference.image, reference.mask)
        return dataclasses.replace(reference, image=image, mask=mask)

    def seen(self, references: Sequence[Reference]) -> UInt8[np.ndarray, "K height width 3"]:
        """References, as they were read, as the video's encoder sees them."""
        arrays = self.entities([self.cropped(reference) for reference in references])
        return arrays["references"][: len(references)]

    def laid_out(self, prompt: str, references: Sequence[Reference], shown: bool = True) -> Arrays:
        """The same of references that are cropped, and perhaps augmented.

        No text is the empty prompt. References that are not `shown` are none in the MLLM's input, and beside the video
        none or zeros, as the config says. Training's dropped conditions and sampling's null branches both come from
        here, so they are the same arrays.
        """
        arrays = self.entities(references, shown)
        if self.processor is not None:
            arrays |= self.processor(prompt, [self._for_mllm(r) for r in references if shown])
        if self.config.condition.conditioner != "mllm":
            arrays["prompt_tokens"] = self.text(prompt)[0]
        return arrays

    def entities(self, references: Sequence[Reference], shown: bool = True) -> Arrays:
        """One sample's references for the VAE; they are cropped already."""
        data, condition = self.config.data, self.config.condition
        zeros = condition.empty_references != "absent"
        references = references if shown or zeros else ()
        self._check_count(references)
        boxes = np.full((data.max_references, *data.reference_size, 3), self._level, np.uint8)
        areas = np.zeros((data.max_references, 4), np.int32)
        for i, reference in enumerate(references):
            boxes[i], areas[i] = self._placed(reference)
        arrays = {"references": boxes, "entity_lengths": np.int32(len(references))}
        if zeros:
            arrays["entities_shown"] = np.bool_(shown)
        if condition.reference_channels == "masked":
            # No frame of the video is given, as the first one is where a picture goes on.
            arrays |= {"areas": areas, "frames_given": np.zeros(data.frames, np.bool_)}
        return arrays

    @property
    def _level(self) -> int:
        return {"white": WHITE, "black": 0}[self.config.data.background]

    def _for_mllm(self, reference: Reference) -> UInt8[np.ndarray, "h w 3"]:
        picture = on_grey(reference.image, reference.mask, self._level)
        return scaled(picture, *self.config.condition.mllm_scales)

    def _placed(self, reference: Reference) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[int, int, int, int]]:
        """A reference in its place for the VAE, and the box (left, top, right, bottom) that its picture fills.

        Only of pictures that keep their size somebody asks for that box; of others it is the whole place.
        """
        data, (height, width), level = self.config.data, self.config.data.reference_size, self._level
        if data.references_like_video and not data.enlarge_references:
            return shrunk(on_grey(reference.image, reference.mask, level), height, width, level)
        fit = letterbox
        if data.references_like_video or data.crop_references:
            fit = functools.partial(fitted, enlarged=np.inf if data.references_like_video else MOST_ENLARGED)
        return fit(reference.image, reference.mask, height, width, level=level), (0, 0, width, height)

    def _check_count(self, references: Sequence[Reference]) -> None:
        most = self.config.data.max_references
        if len(references) > most:
            raise InputError(f"{len(references)} references were given; at most {most} are accepted")
